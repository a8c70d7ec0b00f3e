"""Replies that are not complete, whatever they say."""

from ...serving.printable import printable
from ...serving.types import Completion
from ..records import Kind, Problem
from .wrappers import unwrap


def unfinished(completion: Completion) -> Problem | None:
    """Why a completion is no complete reply; None if it is one."""
    if completion.finish_reason == "length":
        spent = ""
        if completion.reasoning and not completion.text.strip():
            spent = ", all of them reasoning"
        return Problem(
            Kind.TRUNCATED,
            f"the reply was truncated after {completion.completion_tokens} tokens{spent}; raise "
            "max_tokens (and the server's max_model_len if that is the limit), or request "
            "shorter replies",
        )
    if completion.finish_reason != "stop":
        is_empty = completion.finish_reason in {"refusal", "tool_calls"}
        return Problem(Kind.EMPTY if is_empty else Kind.TRUNCATED, _early_end(completion))
    if not unwrap(completion.text):
        return Problem(Kind.EMPTY, _no_answer(completion))
    return None


def _early_end(completion: Completion) -> str:
    """What a finish reason other than the natural one means, and what to do."""
    reason = printable(completion.finish_reason, 40)
    if reason == "refusal":
        return f"the model refused to answer: {printable(completion.text, 200)}"
    if reason == "content_filter":
        return "the server's content filter withheld the reply (finish_reason 'content_filter')"
    if reason == "tool_calls":
        return (
            "the model called a tool instead of answering (finish_reason 'tool_calls'); start the "
            "server without tool calling"
        )
    if not reason:
        return (
            "the server does not say why the reply ended (no finish_reason), so it may be "
            "incomplete; check the raw text, and whether max_tokens is set and usage reported"
        )
    return (
        f"the server ended the reply early (finish_reason {reason!r}); check the raw text and the "
        "server's log"
    )


def _no_answer(completion: Completion) -> str:
    """Why a complete reply holds no answer, and what to do."""
    tokens = f"{completion.completion_tokens} tokens"
    if completion.reasoning:
        return (
            f"the model wrote only reasoning ({tokens}), and no answer: its server takes all of it "
            "for reasoning. Start vLLM without --reasoning-parser, or with the one of this model"
        )
    content = "only reasoning" if completion.text.strip() else "nothing"
    return f"the model wrote {content} ({tokens}); check the prompt and the model's chat template"
