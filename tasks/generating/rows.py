"""Rows -> replies: sends the requests of some rows of a batch, and records what comes back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType

from ...serving.client.client import ChatClient
from ...serving.client.retry_policy import MAX_CRASHES
from ...serving.types import ChatRequest, Completion, FailureKind, Outcome
from ..concurrency import STORE_THREADS
from ..images.prepare import PreparedImage
from ..prompting.correction import Correction
from ..records import Batch, Kind, Problem, Prompt, Reply, RowError
from .chat_requests import GenerationSettings, build_request, images_at_once

Build = Callable[[Prompt, Sequence[PreparedImage] | None], ChatRequest]
"""Builds a row's request of its prepared images, or prepares them first."""


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

    def build(prompt: Prompt, images: Sequence[PreparedImage] | None) -> ChatRequest:
        return build_request(
            prompt,
            settings,
            attempts[prompt.key],
            images=images,
            unguided=unguided,
            correction=corrections.get(prompt.key),
        )

    def requests() -> Iterator[ChatRequest]:
        for prompt, request in _build(prompts, build, settings):
            batch.unsent = max(batch.unsent - 1, 0)
            if isinstance(request, Problem):
                replies[prompt.key] = request
                continue
            sent.append(prompt)
            yield request

    def record(position: int, outcome: Outcome) -> None:
        replies[sent[position].key] = reply_of(outcome)

    client.complete(requests(), record, max_crashes=max_crashes)


def _build(
    prompts: Iterable[Prompt], build: Build, settings: GenerationSettings
) -> Iterator[tuple[Prompt, ChatRequest | Problem]]:
    """The rows with their requests, or why a row has none.

    Those are built right here whose images take neither waiting nor decoding: handing them to
    other threads would cost more. Up to `STORE_THREADS` others are built ahead in the threads of
    the reader.
    """
    ahead: deque[tuple[Prompt, Future[ChatRequest | Problem]]] = deque()

    def build_ahead(prompt: Prompt) -> ChatRequest | Problem:
        try:
            return build(prompt, None)
        except RowError as error:
            return error.problem

    for prompt in prompts:
        try:
            images = [] if prompt.problem else images_at_once(prompt, settings)
            if images is None:
                ahead.append((prompt, settings.reader.executor.submit(build_ahead, prompt)))
            else:
                yield prompt, build(prompt, images)
        except RowError as error:
            yield prompt, error.problem
        if len(ahead) > STORE_THREADS:
            first, building = ahead.popleft()
            yield first, building.result()
    for first, building in ahead:
        yield first, building.result()


def known_replies(batch: Batch, settings: GenerationSettings) -> dict[str, Reply]:
    """The replies that need no request, by row key: answers that rows have, and known ones."""
    replies = dict[str, Reply]()
    for prompt in batch.prompts:
        if prompt.given_answer:
            replies[prompt.key] = Completion(prompt.given_answer, "stop", 0, 0, 0.0, "", attempts=0)
        elif settings.known_reply and (outcome := settings.known_reply(prompt.key)) is not None:
            replies[prompt.key] = reply_of(outcome)
    return replies


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
