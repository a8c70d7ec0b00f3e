"""A batch -> replies: sends each row, and attributes failures to the row or to the server."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task

from ...serving.client.client import ChatClient
from ...serving.client.responses import GATEWAY_STATUSES
from ...serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from ..concurrency import STORE_THREADS, prefetch
from ..errors import EndpointError, EndpointLostError
from ..records import Batch, Kind, Problem, Prompt, Reply, RowError
from .cache import load_cached, store_in_cache
from .chat_requests import GenerationSettings, build_request
from .completions import Completions

SUSPECT_DISCONNECTS = 2
"""How many times the server may be lost while working on a row before the row is suspected."""

MAX_REJECTIONS = 2
"""Rejections of a row, while other rows are answered, before the row itself is to blame."""

MAX_LOST_ISOLATED = 10
"""How many times the server may be lost on single rows not confirmed to crash it."""

BATCH_RETRIES = 3
"""Retries of a batch whose server is lost, after about 2, 4 and 8 seconds."""


def _server_was_lost(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:  # noqa: ARG001
    """Whether to retry: only if the server was lost."""
    return isinstance(state.result(raise_on_failure=False), EndpointLostError)


@task(
    name="generate",
    task_run_name="generate-{batch}",
    retries=BATCH_RETRIES,
    retry_condition_fn=_server_was_lost,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def generate_batch(
    batch: Batch, client: ChatClient, settings: GenerationSettings
) -> Mapping[str, Any]:
    """Send every row of a batch to the model; returns `Completions` as plain JSON.

    A retry sends only the rows that have no reply yet. With the options of `batch_cache`, the same
    batch is never sent twice.

    Raises:
        EndpointLostError: the server is unreachable.
        EndpointError: the server rejects the key, or no longer serves the model.
        StoreError: the cache cannot be read or written.
    """
    if (stored := load_cached()) is not None:
        return stored
    if (tries := task_run.run_count or 1) > 1:
        # Not Prefect's own retry delay, which cancelling the run could not interrupt.
        client.pause(2 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        settings.recover()
    pending = [prompt for prompt in batch.prompts if prompt.key not in batch.replies]
    batch.unsent = len(pending)
    try:
        if batch.isolated:
            complete_isolated(pending, batch, client, settings)
        else:
            complete_rows(pending, batch, client, settings)
    finally:
        # These rows are still to be sent: otherwise, while the server is down, further batches
        # would be started only to fail in the same way.
        batch.unsent = sum(prompt.key not in batch.replies for prompt in batch.prompts)
    completions = Completions.from_batch(batch).dump()
    store_in_cache(completions)
    return completions


def complete_rows(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Send some rows of a batch, and record their replies in it.

    Raises:
        EndpointLostError: the server is unreachable; replies received before are retained.
        EndpointError: the server rejects the key, or no longer serves the model.
    """
    while pending := [prompt for prompt in prompts if prompt.key not in batch.replies]:
        before = client.stats.completions
        failures = _complete_once(pending, batch, client, settings)
        _blame_rows(failures, batch, client, answers=client.stats.completions > before)
        unresolved = [failure for key, failure in failures.items() if key not in batch.replies]
        for failure in unresolved:
            if not failure.retryable:
                raise EndpointError(f"the server refuses to answer: {failure.message}")
        if unresolved:
            raise EndpointLostError(f"the server stopped answering: {unresolved[0].message}")


def _complete_once(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> Mapping[str, Failure]:
    """Send rows until one fails in a way the server may be to blame for.

    Returns:
        Those failures, by row key.
    """
    failures: dict[str, Failure] = {}
    sent: list[Prompt] = []
    attempts = {prompt.key: n for prompt, n in zip(batch.prompts, batch.attempts, strict=True)}

    def build(prompt: Prompt) -> ChatRequest:
        return build_request(prompt, settings, attempts[prompt.key])

    def requests() -> Iterator[ChatRequest]:
        for prompt, request in prefetch(settings.reader.executor, build, prompts, STORE_THREADS):
            if failures:
                return
            batch.unsent -= 1
            try:
                built = request.result()
            except RowError as error:
                batch.replies[prompt.key] = error.problem
                continue
            sent.append(prompt)
            yield built

    def record(position: int, outcome: Outcome) -> None:
        key = sent[position].key
        if not isinstance(outcome, Failure) or outcome.kind not in _ENDPOINT_FAILURES:
            batch.replies[key] = reply_of(outcome)
            return
        failures[key] = outcome
        batch.unsent += 1  # to be sent again once the server has recovered
        batch.disconnects[key] += outcome.disconnects
        if batch.disconnects[key] >= SUSPECT_DISCONNECTS:
            batch.replies[key] = _crash_problem(outcome, batch)

    client.complete(requests(), record)
    return failures


def _blame_rows(
    failures: Mapping[str, Failure], batch: Batch, client: ChatClient, *, answers: bool
) -> None:
    """Quarantine rows that a healthy server or gateway rejects while it answers others.

    Args:
        failures: by row key; the server may be to blame for them.
        batch: the rows' batch.
        client: checks whether the server is healthy.
        answers: whether other rows were answered in the meantime.
    """
    rejected = {
        key: failure
        for key, failure in failures.items()
        if not failure.disconnects
        and (not failure.retryable or failure.status in _REJECTION_STATUSES)
        and (answers or batch.rejections[key])
    }
    if not rejected:
        return
    try:
        client.check()
    except EndpointError:
        return
    for key, failure in rejected.items():
        batch.rejections[key] += 1
        if not failure.retryable or batch.rejections[key] >= MAX_REJECTIONS:
            batch.replies[key] = reply_of(failure)


def complete_isolated(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Send rows of which one or more crash the server, and find those by bisection.

    Raises:
        EndpointError: as `complete_rows` does.
        ImageQAError: the server does not recover.
    """
    groups, lost_isolated = [list(prompts)], 0
    while groups:
        group = groups.pop()
        lost = False
        try:
            complete_rows(group, batch, client, settings)
        except EndpointLostError:
            lost = True
        finally:
            # Disconnects of a row that was sent with others prove nothing about that row.
            unanswered = [prompt for prompt in group if _is_unanswered(prompt, batch)]
            for prompt in unanswered if len(group) > 1 else ():
                batch.replies.pop(prompt.key, None)
                batch.disconnects[prompt.key] = 0
        if lost:
            settings.recover(expected=True)
        if len(group) > 1:
            middle = (len(unanswered) + 1) // 2
            groups += [half for half in (unanswered[middle:], unanswered[:middle]) if half]
        elif unanswered and unanswered[0].key not in batch.replies:
            lost_isolated += 1  # lost once on this row: that may have been a coincidence
            if lost_isolated > MAX_LOST_ISOLATED:
                raise EndpointLostError("the server keeps failing, whichever row is sent")
            groups.append(unanswered)


def _is_unanswered(prompt: Prompt, batch: Batch) -> bool:
    """Whether a row has no reply, or is only suspected of crashing the server."""
    reply = batch.replies.get(prompt.key)
    return reply is None or (isinstance(reply, Problem) and reply.kind is Kind.CRASH)


def _crash_problem(outcome: Failure, batch: Batch) -> Problem:
    """The problem of a row during which the server was lost too often."""
    if batch.isolated:
        message = "the server went down each time this row was sent on its own"
    else:
        message = "the server went down more than once while it worked on this row and others"
    return Problem(Kind.CRASH, f"{message} ({outcome.message})", None, outcome.attempts)


_ENDPOINT_FAILURES = {
    FailureKind.CONNECTION,
    FailureKind.UNAVAILABLE,
    FailureKind.AUTH,
    FailureKind.NOT_FOUND,
}
"""Failures not caused by a row: they stop the batch instead of quarantining the row."""

_REJECTION_STATUSES = GATEWAY_STATUSES | {503}
"""Retryable statuses that one row may cause permanently; 429 is about the request rate instead."""


def reply_of(outcome: Outcome) -> Reply:
    """Convert a failure caused by the row into its problem; a completion is returned unchanged."""
    if isinstance(outcome, Completion):
        return outcome
    kinds = {
        FailureKind.BAD_REQUEST: Kind.BAD_REQUEST,
        FailureKind.TIMEOUT: Kind.TIMEOUT,
        FailureKind.CONNECTION: Kind.CONNECTION,
    }
    kind = kinds.get(outcome.kind, Kind.SERVER_ERROR)
    return Problem(kind, outcome.message, outcome.status, outcome.attempts)
