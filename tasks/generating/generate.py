"""A batch -> replies: sends each row, and finds those that crash the server."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from ...serving.client.client import ChatClient
from ...serving.client.retry_policy import MAX_CRASHES
from ...serving.types import ChatRequest, Completion, FailureKind, Outcome
from ..concurrency import STORE_THREADS, prefetch
from ..errors import ImageQAError
from ..records import Batch, Kind, Problem, Prompt, Reply, RowError
from .cache import load_cached, store_in_cache
from .chat_requests import GenerationSettings, build_request
from .completions import Completions
from .runaway import is_runaway

BATCH_RETRIES = 2
"""Retries of a batch that failed for a reason that nobody has foreseen."""


def _is_unexpected(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:  # noqa: ARG001
    """Whether to retry: every error with a message for the user has been waited for already."""
    return not isinstance(state.result(raise_on_failure=False), ImageQAError)


@task(
    name="generate",
    task_run_name="generate-{batch}",
    retries=BATCH_RETRIES,
    retry_delay_seconds=1,
    retry_condition_fn=_is_unexpected,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def generate_batch(
    batch: Batch, client: ChatClient, settings: GenerationSettings
) -> Mapping[str, Any]:
    """Send every row of a batch to the model; returns `Completions` as plain JSON.

    The client retries requests, and waits while no server answers. A retry of the task sends only
    the rows that have no reply yet. With the options of `batch_cache`, the same batch is never sent
    twice.

    Raises:
        EndpointLostError: no server has answered for as long as the client waits.
        EndpointError: the server rejects the key, or no longer serves the model.
        StoreError: the cache cannot be read or written, or the store of the images is lost.
    """
    if (stored := load_cached()) is not None:
        return stored
    pending = [prompt for prompt in batch.prompts if prompt.key not in batch.replies]
    batch.unsent = len(pending)
    if batch.isolated:
        complete_isolated(pending, batch, client, settings)
    else:
        complete_rows(pending, batch, client, settings)
        complete_unguided(pending, batch, client, settings)
    completions = Completions.from_batch(batch).dump()
    store_in_cache(completions)
    return completions


def complete_rows(
    prompts: Sequence[Prompt],
    batch: Batch,
    client: ChatClient,
    settings: GenerationSettings,
    *,
    max_crashes: int = MAX_CRASHES,
    unguided: bool = False,
) -> None:
    """Send some rows of a batch, and record their replies in it.

    Args:
        prompts: the rows.
        batch: their batch.
        client: sends the requests.
        settings: how prompts are sent.
        max_crashes: losses of the server after which the rows it was working on are suspected.
        unguided: whether to leave the form of the replies free; see `build_request`.

    Raises:
        EndpointError: no server answers, or it refuses to. Replies received before are recorded.
        StoreError: the store of the images is lost.
    """
    attempts = dict(zip((prompt.key for prompt in batch.prompts), batch.attempts, strict=True))
    sent: list[Prompt] = []

    def build(prompt: Prompt) -> ChatRequest:
        return build_request(prompt, settings, attempts[prompt.key], unguided=unguided)

    def requests() -> Iterator[ChatRequest]:
        for prompt, request in prefetch(settings.reader.executor, build, prompts, STORE_THREADS):
            batch.unsent = max(batch.unsent - 1, 0)
            try:
                built = request.result()
            except RowError as error:
                batch.replies[prompt.key] = error.problem
                continue
            sent.append(prompt)
            yield built

    def record(position: int, outcome: Outcome) -> None:
        batch.replies[sent[position].key] = reply_of(outcome)

    client.complete(requests(), record, max_crashes=max_crashes)


def complete_unguided(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Ask once more where a reply was cut off in the middle of whitespace or of a repetition.

    Guided decoding causes that most often, so this time the form of the reply is free. A reply that
    fails again in any way does not replace the first.

    Raises:
        EndpointError: as `complete_rows` does. The rows in question have no reply then, so that
            those of the others can be stored.
    """
    runaway = [prompt for prompt in prompts if _is_runaway(batch.replies[prompt.key])]
    if not runaway:
        return
    before = {prompt.key: batch.replies.pop(prompt.key) for prompt in runaway}
    complete_rows(runaway, batch, client, settings, unguided=True)
    for key, reply in before.items():
        after = batch.replies[key]
        if not isinstance(after, Completion) or after.finish_reason in _CUT_OFF:
            batch.replies[key] = reply


def _is_runaway(reply: Reply) -> bool:
    return (
        isinstance(reply, Completion) and reply.finish_reason in _CUT_OFF and is_runaway(reply.text)
    )


def complete_isolated(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Send rows of which one or more crash the server, and find those by bisection.

    Raises:
        EndpointError: as `complete_rows` does.
        ServerError: the server does not recover.
    """
    groups = [list(prompts)]
    while groups:
        group = groups.pop()
        try:
            complete_rows(group, batch, client, settings, max_crashes=1)
        finally:
            suspects = [prompt for prompt in group if _is_suspect(batch.replies.get(prompt.key))]
            if len(group) > 1:  # a crash with other rows in flight proves nothing about this one
                for prompt in suspects:
                    del batch.replies[prompt.key]
        if len(group) > 1:
            middle = (len(suspects) + 1) // 2
            groups += [half for half in (suspects[middle:], suspects[:middle]) if half]


def _is_suspect(reply: Reply | None) -> bool:
    """Whether a row was in flight when the server was lost."""
    return isinstance(reply, Problem) and reply.kind is Kind.CRASH


_CUT_OFF = {"length", "repetition"}
"""Finish reasons of replies that are not complete."""


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
