"""A batch -> replies: each row is asked, and what fails is the row's fault or the server's."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task

from ...serving.client.client import ChatClient
from ...serving.client.replies import GATEWAY_STATUSES
from ...serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from ..concurrency import STORE_THREADS, prefetch
from ..errors import EndpointError, EndpointLostError
from ..records import Batch, Kind, Problem, Prompt, Reply, RowError
from .cache import store_in_cache, load_cached
from .completions import Completions
from .requests import GenerationSettings, build_request

SUSPECT_DISCONNECTS = 2
"""How many times the server may be lost with a row before the row is set aside."""

MAX_REJECTIONS = 2
"""Tries of a batch in which a row is refused, and others are answered, until that is its fault."""

MAX_LOST_ISOLATED = 10
"""How many times the server may be lost with single rows that have not killed it for certain."""

BATCH_RETRIES = 3
"""How often a batch is tried again when its server is gone: after about 2, 4 and 8 seconds."""


def _server_may_return(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:  # noqa: ARG001
    """Retry only when the server was lost."""
    return isinstance(state.result(raise_on_failure=False), EndpointLostError)


@task(
    name="generate",
    task_run_name="generate-{batch}",
    retries=BATCH_RETRIES,
    retry_condition_fn=_server_may_return,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def generate_batch(
    batch: Batch, client: ChatClient, settings: GenerationSettings
) -> Mapping[str, Any]:
    """Ask the model for every row of a batch; returns `Completions` as plain JSON.

    A retry asks only for the rows that have no reply yet. See `batch_cache` for a task
    that never asks the same batch twice.

    Raises:
        EndpointLostError: the server is gone.
        EndpointError: the server refuses the key, or no longer serves the model.
        StoreError: the cache cannot be read or written.
    """
    if (stored := load_cached()) is not None:
        return stored
    if (tries := task_run.run_count or 1) > 1:
        # Not Prefect's own delay: nothing could end that when the run is cancelled.
        client.pause(2 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        settings.recover()
    pending = [prompt for prompt in batch.prompts if prompt.key not in batch.replies]
    batch.unsent = len(pending)
    try:
        if batch.isolated:
            complete_isolated(pending, batch, client, settings)
        else:
            ask(pending, batch, client, settings)
    finally:
        # While the server is away, no other batch is started only to fail in the same way.
        batch.unsent = sum(prompt.key not in batch.replies for prompt in batch.prompts)
    completions = Completions.of(batch).dump()
    store_in_cache(completions)
    return completions


def ask(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Ask for some rows of a batch, and enter their replies in it.

    Raises:
        EndpointLostError: the server is gone; the replies that came before are kept.
        EndpointError: the server refuses the key, or no longer serves the model.
    """
    while pending := [prompt for prompt in prompts if prompt.key not in batch.replies]:
        before = client.stats.completions
        lost = _complete_once(pending, batch, client, settings)
        _blame(lost, batch, client, answers=client.stats.completions > before)
        left = [failure for key, failure in lost.items() if key not in batch.replies]
        for failure in left:
            if not failure.retryable:
                raise EndpointError(f"the server refuses to answer: {failure.message}")
        if left:
            raise EndpointLostError(f"the server stopped answering: {left[0].message}")


def _complete_once(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> Mapping[str, Failure]:
    """Ask until the server is lost; gives the failures that may be its fault, by row key."""
    lost: dict[str, Failure] = {}
    sent: list[Prompt] = []
    attempts = {prompt.key: n for prompt, n in zip(batch.prompts, batch.attempts, strict=True)}

    def build(prompt: Prompt) -> ChatRequest:
        return build_request(prompt, settings, attempts[prompt.key])

    def requests() -> Iterator[ChatRequest]:
        for prompt, request in prefetch(settings.reader.threads, build, prompts, STORE_THREADS):
            if lost:
                return
            batch.unsent -= 1
            try:
                ready = request.result()
            except RowError as error:
                batch.replies[prompt.key] = error.problem
                continue
            sent.append(prompt)
            yield ready

    def enter(position: int, outcome: Outcome) -> None:
        key = sent[position].key
        if not isinstance(outcome, Failure) or outcome.kind not in _ENDPOINT_FAULTS:
            batch.replies[key] = reply_of(outcome)
            return
        lost[key] = outcome
        batch.unsent += 1  # when the server is back
        batch.cuts[key] += outcome.cuts
        if batch.cuts[key] >= SUSPECT_DISCONNECTS:
            batch.replies[key] = _crash(outcome, batch)

    client.complete(requests(), enter)
    return lost


def _blame(lost: Mapping[str, Failure], batch: Batch, client: ChatClient, *, answers: bool) -> None:
    """Blame rows that are refused by a server or gateway which is well, and answers others.

    What was lost may be the server's fault; `answers` tells whether others were answered meanwhile.
    """
    refused = {
        key: failure
        for key, failure in lost.items()
        if not failure.cuts
        and (not failure.retryable or failure.status in _REFUSALS)
        and (answers or batch.faults[key])
    }
    if not refused:
        return
    try:
        client.check()
    except EndpointError:
        return
    for key, failure in refused.items():
        batch.faults[key] += 1
        if not failure.retryable or batch.faults[key] >= MAX_REJECTIONS:
            batch.replies[key] = reply_of(failure)


def complete_isolated(
    prompts: Sequence[Prompt], batch: Batch, client: ChatClient, settings: GenerationSettings
) -> None:
    """Ask for rows of which one or more kill the server; find those by halving.

    Raises:
        EndpointError: as `ask` does.
        ImageQAError: the server does not come back.
    """
    groups, lost_isolated = [list(prompts)], 0
    while groups:
        group = groups.pop()
        lost = False
        try:
            ask(group, batch, client, settings)
        except EndpointLostError:
            lost = True
        finally:
            # What is known of a row that was asked with others is no finding.
            rest = [prompt for prompt in group if _unanswered(prompt, batch)]
            for prompt in rest if len(group) > 1 else ():
                batch.replies.pop(prompt.key, None)
                batch.cuts[prompt.key] = 0
        if lost:
            settings.recover(expected=True)
        if len(group) > 1:
            middle = (len(rest) + 1) // 2
            groups += [half for half in (rest[middle:], rest[:middle]) if half]
        elif rest and rest[0].key not in batch.replies:  # lost once: that may have been chance
            lost_isolated += 1
            if lost_isolated > MAX_LOST_ISOLATED:
                raise EndpointLostError("the server is lost again and again")
            groups.append(rest)


def _unanswered(prompt: Prompt, batch: Batch) -> bool:
    """Whether a row has no reply, or is only suspected."""
    reply = batch.replies.get(prompt.key)
    return reply is None or (isinstance(reply, Problem) and reply.kind is Kind.CRASH)


def _crash(outcome: Failure, batch: Batch) -> Problem:
    """What is told of a row that the server was lost with too often."""
    if batch.isolated:
        message = "the server is lost each time it is asked this row alone"
    else:
        message = "the server was lost more than once while it worked on this row and others"
    return Problem(Kind.CRASH, f"{message} ({outcome.message})", None, outcome.attempts)


_ENDPOINT_FAULTS = {
    FailureKind.CONNECTION,
    FailureKind.UNAVAILABLE,
    FailureKind.AUTH,
    FailureKind.NOT_FOUND,
}
"""What is no row's fault, and stops a batch instead of costing it a row."""


_REFUSALS = GATEWAY_STATUSES | {503}
"""What may also be said of one row, for ever; 429 is about their number."""


def reply_of(outcome: Outcome) -> Reply:
    """Turn a row's own failure into its problem; a completion stays as it is."""
    if isinstance(outcome, Completion):
        return outcome
    kinds = {
        FailureKind.BAD_REQUEST: Kind.BAD_REQUEST,
        FailureKind.TIMEOUT: Kind.TIMEOUT,
        FailureKind.CONNECTION: Kind.CONNECTION,
    }
    kind = kinds.get(outcome.kind, Kind.SERVER_ERROR)
    return Problem(kind, outcome.message, outcome.status, outcome.attempts)
