"""Rows -> replies: sends the requests of some rows of a batch, and records what comes back."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ...serving.client.client import ChatClient
from ...serving.client.retry_policy import MAX_CRASHES
from ...serving.types import ChatRequest, Completion, FailureKind, Outcome
from ..concurrency import STORE_THREADS, prefetch
from ..prompting.correction import Correction
from ..records import Batch, Kind, Problem, Prompt, Reply, RowError
from .chat_requests import GenerationSettings, build_request


def complete_rows(
    prompts: Sequence[Prompt],
    batch: Batch,
    client: ChatClient,
    settings: GenerationSettings,
    replies: dict[str, Reply],
    *,
    max_crashes: int = MAX_CRASHES,
    unguided: bool = False,
    corrections: Mapping[str, Correction] = MappingProxyType({}),
) -> None:
    """Send some rows of a batch.

    Args:
        prompts: the rows.
        batch: their batch.
        client: sends the requests.
        settings: how prompts are sent.
        replies: row key -> reply; where they are recorded as they come in.
        max_crashes: losses of the server after which the rows it was working on are suspected.
        unguided: whether to leave the form of the replies free; see `build_request`.
        corrections: row key -> what is wrong with the reply that the row has got.

    Raises:
        EndpointError: no server answers, or it refuses to. Replies received before are recorded.
        StoreError: the store of the images is lost.
    """
    attempts = dict(zip((prompt.key for prompt in batch.prompts), batch.attempts, strict=True))
    sent: list[Prompt] = []

    def build(prompt: Prompt) -> ChatRequest:
        correction = corrections.get(prompt.key)
        attempt = attempts[prompt.key]
        return build_request(prompt, settings, attempt, unguided=unguided, correction=correction)

    def requests() -> Iterator[ChatRequest]:
        for prompt, request in prefetch(settings.reader.executor, build, prompts, STORE_THREADS):
            batch.unsent = max(batch.unsent - 1, 0)
            try:
                built = request.result()
            except RowError as error:
                replies[prompt.key] = error.problem
                continue
            sent.append(prompt)
            yield built

    def record(position: int, outcome: Outcome) -> None:
        replies[sent[position].key] = reply_of(outcome)

    client.complete(requests(), record, max_crashes=max_crashes)


def reply_of(outcome: Outcome) -> Reply:
    """Convert a failure into the problem of its row; a completion is returned unchanged."""
    if isinstance(outcome, Completion):
        return outcome
    message = outcome.message
    if outcome.kind is FailureKind.CRASH:
        message = f"the server went down while it worked on this row ({message})"
    kind = _KINDS.get(outcome.kind, Kind.SERVER_ERROR)
    return Problem(kind, message, outcome.status, outcome.attempts)


_KINDS = {
    FailureKind.BAD_REQUEST: Kind.BAD_REQUEST,
    FailureKind.TIMEOUT: Kind.TIMEOUT,
    FailureKind.DISCONNECTED: Kind.CONNECTION,
    FailureKind.CONNECTION: Kind.CONNECTION,
    FailureKind.CRASH: Kind.CRASH,
}
"""Other failures are errors of the server."""
