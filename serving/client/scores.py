"""Requests that score a given text: how probable each of its tokens is to the model.

Such a request ends with the text as a message of the assistant, left open for the model to go on
(`continue_final_message`), and asks for the log-probabilities of its own tokens
(`prompt_logprobs`). What the model goes on with is of no interest.
"""

from collections.abc import Iterator, Mapping, Sequence

import orjson

from ..types import ChatRequest

_LEAST = -1e4
"""vLLM writes -9999 for a probability of 0."""

_ROUNDING = 1e-3
"""A log-probability may be above 0 by as much."""

_MAX_TOKEN = 100
"""Characters kept of a token."""

_MAX_EMPTY = 3
"""Tokens without a text of their own that a character may begin with: it has 4 bytes at most."""


def scored_text(request: ChatRequest) -> str:
    """The text that a request scores; empty if it is a request for a reply."""
    options = request.options
    if options.get("prompt_logprobs") is None or not options.get("continue_final_message"):
        return ""
    content = request.messages[-1].get("content") if request.messages else None
    return content if isinstance(content, str) else ""


def lowest_token(prompt_logprobs: object, text: str) -> str:
    """The least probable token of a text with which a prompt ends.

    Args:
        prompt_logprobs: as vLLM writes them: for each token of the prompt an object with that
            token first, and those asked for besides; null for the first token.
        text: what was scored.

    Returns:
        As JSON: `token`, its text, and `logprob`, the natural logarithm of its probability, at
        most 0.

    Raises:
        ValueError: there are none, or the prompt ends with something else; a message for the user.
    """
    if not isinstance(prompt_logprobs, Sequence) or isinstance(prompt_logprobs, str):
        raise ValueError(
            "the server gives no log-probabilities of a prompt (prompt_logprobs), as vLLM does"
        )
    # Tokenizers differ in what they take for a space before a token.
    sought = "".join(text.split())
    found, missing, empty = list[tuple[float, str]](), len(sought), 0
    ending, shown = list[str](), ""
    for token, logprob in _from_the_end(prompt_logprobs):
        if missing <= 0 and (token or (empty := empty + 1) > _MAX_EMPTY):
            break
        if not found and token.isspace():  # of the chat template, or the answer's last line break
            continue
        shown = token or shown
        found.append((logprob, shown))
        ending.append("".join(token.split()))
        missing -= len(ending[-1])
    if not sought or not "".join(reversed(ending)).endswith(sought):
        raise ValueError(
            "the prompt does not end with the text to score: the model's chat template changes it"
        )
    logprob, token = min(found)
    return orjson.dumps({"token": token[:_MAX_TOKEN], "logprob": round(logprob, 6)}).decode()


def _from_the_end(prompt_logprobs: Sequence[object]) -> Iterator[tuple[str, float]]:
    """The tokens of a prompt with their log-probabilities, the last one first."""
    for entry in reversed(prompt_logprobs):
        if entry is None:  # the first token of a prompt has no probability
            return
        first = next(iter(entry.values()), None) if isinstance(entry, Mapping) else None
        token = first.get("decoded_token") if isinstance(first, Mapping) else None
        logprob = first.get("logprob") if isinstance(first, Mapping) else None
        if (
            not isinstance(token, str)
            or isinstance(logprob, bool)
            or not isinstance(logprob, int | float)
            or not _LEAST <= logprob <= _ROUNDING
        ):
            raise ValueError("the server's log-probabilities of the prompt are malformed")
        yield token, min(float(logprob), 0.0)
