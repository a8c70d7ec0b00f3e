"""A batch -> completions: sends each row, and finds those that crash the server."""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from ...serving.client.client import ChatClient
from ..concurrency import TASK_OPTIONS
from ..errors import ImageQAError
from ..records import Batch, Kind, Problem, Prompt, Reply
from .again import complete_corrected, complete_unguided, is_settled
from .batching import make_batch
from .cache import CompletionsCache
from .chat_requests import GenerationSettings
from .completions import Completions
from .rows import complete_rows, known_replies

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
    **TASK_OPTIONS,
)
def generate_batch(
    batch: Batch,
    client: ChatClient,
    settings: GenerationSettings,
    cache: CompletionsCache | None = None,
) -> Completions:
    """Send every row of a batch to the model; see `complete_batch`.

    A retry of the task sends only the rows that have no reply yet.
    """
    return complete_batch(batch, client, settings, cache)


def complete_batch(
    batch: Batch,
    client: ChatClient,
    settings: GenerationSettings,
    cache: CompletionsCache | None = None,
) -> Completions:
    """Send every row of a batch that has no reply yet to the model.

    The client retries requests, and waits while no server answers.

    Args:
        batch: the batch; gets the replies as they come in.
        client: sends the requests.
        settings: how prompts are sent.
        cache: whose batches are not sent again; gets this one.

    Raises:
        EndpointLostError: no server has answered for as long as the client waits.
        EndpointError: the server rejects the key, or no longer serves the model.
        StoreError: the cache cannot be read or written, or the store of the images is lost.
    """
    if cache is not None and (stored := cache.read(batch)) is not None:
        return stored
    known = known_replies(batch, settings)
    batch.replies |= known
    batch.settled |= known.keys()
    pending = [prompt for prompt in batch.prompts if prompt.key not in batch.replies]
    batch.unsent = len(pending)
    if batch.isolated:
        complete_isolated(pending, batch, client, settings)
    else:
        complete_rows(pending, batch, client, settings, batch.replies)
        unsettled = [prompt for prompt in batch.prompts if prompt.key not in batch.settled]
        complete_unguided(unsettled, batch, client, settings)
        complete_corrected(unsettled, batch, client, settings)
    batch.settled |= batch.replies.keys()
    completions = Completions.from_batch(batch)
    if cache is not None:
        cache.write(completions)
    return completions


def answered_part(batch: Batch, settings: GenerationSettings) -> Batch | None:
    """A batch of only those rows that have their final reply; None where no row has one.

    Its number is that of the batch, its key another one.
    """
    answered = {
        prompt.key: (prompt, attempt)
        for prompt, attempt in zip(batch.prompts, batch.attempts, strict=True)
        if is_settled(prompt, batch, settings)
    }
    if not answered:
        return None
    prompts, attempts = zip(*answered.values(), strict=True)
    part = make_batch(
        batch.number,
        prompts,
        attempts,
        cache_buster=batch.cache_buster,
        isolated=batch.isolated,
        label=batch.label,
    )
    part.replies.update({key: batch.replies[key] for key in answered})
    part.settled.update(part.replies)
    part.corrections = batch.corrections
    part.corrected.update(batch.corrected)
    return part


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
            complete_rows(group, batch, client, settings, batch.replies, max_crashes=1)
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
