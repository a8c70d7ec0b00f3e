"""Rows that are asked once more within their batch, because their reply is of no use.

The first reply stays unless the second is better, whatever happens to the second request. While
that is under way, the row has no reply: if the run ends meanwhile, the next one asks the row again
from the start, instead of taking the useless reply for its outcome.

Rows that may crash the server are not asked once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...serving.client.client import ChatClient
from ...serving.types import Completion
from ..prompting.correction import Correction
from ..records import Batch, Prompt, Reply
from .chat_requests import GUIDES, GenerationSettings, request_options
from .rows import complete_rows
from .runaway import is_runaway

_CUT_OFF = {"length", "repetition"}
"""Finish reasons of replies that are not complete."""

Replies = dict[str, Reply]


def is_settled(prompt: Prompt, batch: Batch, settings: GenerationSettings) -> bool:
    """Whether a row has a reply, and is not to be asked once more."""
    reply = batch.replies.get(prompt.key)
    if reply is None or prompt.key in batch.settled:
        return reply is not None
    return not _is_runaway(prompt, reply, settings) and not _fault(prompt, reply, settings)


def complete_unguided(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Ask once more where a reply was cut off in the middle of whitespace or of a repetition.

    Guided decoding causes that most often, so this time the form of the reply is free. Where it was
    free before, and decoding is greedy, the reply would be the same.

    Raises:
        EndpointError: as `complete_rows` does.
    """
    runaway = [
        prompt for prompt in prompts if _is_runaway(prompt, batch.replies[prompt.key], settings)
    ]

    def send(replies: Replies) -> None:
        complete_rows(runaway, batch, client, settings, replies, unguided=True)

    _complete_again(runaway, batch, send, lambda _, reply: reply.finish_reason not in _CUT_OFF)


def _is_runaway(prompt: Prompt, reply: Reply, settings: GenerationSettings) -> bool:
    """Whether a reply was cut off in a loop, and another request may bring another one."""
    if not isinstance(reply, Completion) or reply.finish_reason not in _CUT_OFF:
        return False
    options = request_options(prompt, settings)
    is_same = options.get("temperature") == 0 and not GUIDES & options.keys()
    return not is_same and is_runaway(reply.text)


def complete_corrected(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Ask once more where a reply is complete but unusable, and tell the model what is wrong.

    Raises:
        EndpointError: as `complete_rows` does.
    """
    corrections: dict[str, Correction] = {}
    for prompt in prompts:
        reply = batch.replies[prompt.key]
        if isinstance(reply, Completion) and (fault := _fault(prompt, reply, settings)):
            corrections[prompt.key] = Correction(reply.text, fault)
    unusable = [prompt for prompt in prompts if prompt.key in corrections]
    batch.corrections += len(unusable)

    def send(replies: Replies) -> None:
        complete_rows(unusable, batch, client, settings, replies, corrections=corrections)

    def is_usable(prompt: Prompt, reply: Completion) -> bool:
        usable = _is_complete(reply) and not _fault(prompt, reply, settings)
        if usable:
            batch.corrected[prompt.key] = corrections[prompt.key].unusable
        return usable

    _complete_again(unusable, batch, send, is_usable)


def _fault(prompt: Prompt, reply: Reply, settings: GenerationSettings) -> str:
    """What is wrong with a complete reply; empty if nothing is, or corrections are off."""
    if settings.fault_of is None or not isinstance(reply, Completion) or not _is_complete(reply):
        return ""
    return settings.fault_of(reply, prompt.asked)


def _is_complete(reply: Completion) -> bool:
    """Whether the model ended its reply itself, and did not refuse to answer."""
    return reply.finish_reason == "stop"


def _complete_again(
    prompts: Sequence[Prompt],
    batch: Batch,
    send: Callable[[Replies], None],
    is_better: Callable[[Prompt, Completion], bool],
) -> None:
    """Send other requests for rows that have a reply, and keep the better one.

    Args:
        prompts: the rows.
        batch: their batch.
        send: sends the requests, and records the replies; may raise before all are there.
        is_better: whether a completion should replace the first.
    """
    if not prompts:
        return
    firsts = {prompt.key: batch.replies.pop(prompt.key) for prompt in prompts}
    seconds: Replies = {}
    try:
        send(seconds)
    finally:
        for prompt in prompts:
            if (second := seconds.get(prompt.key)) is None:
                continue
            first = firsts[prompt.key]
            better = isinstance(second, Completion) and is_better(prompt, second)
            batch.replies[prompt.key] = replace(
                second if better else first, attempts=first.attempts + second.attempts
            )
