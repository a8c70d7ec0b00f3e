"""How the steps of the passes are run: each in a task run, and without one once there are many."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Self, TypeVar

from prefect.futures import PrefectFuture
from prefect.states import Failed
from prefect.tasks import Task

from ..tasks.concurrency import Pending, freed_when_done, opaque, quote
from ..tasks.runs.workers import MAX_WORKERS

R = TypeVar("R")

MAX_BATCHES = 2 * MAX_WORKERS
"""A batch in flight takes a thread, even if it only waits for one slow row, or for a worker."""

MAX_ROWS = 32_768
"""No batch is started while so many rows are in flight: their prompts and replies are in memory."""

PREFETCHED_CHUNKS = 2
"""Chunks of rows that are turned into prompts ahead of the batches in flight."""

THREADS = MAX_BATCHES + PREFETCHED_CHUNKS + 1
"""One for each batch in flight, and for each chunk of rows that is turned into prompts."""

MAX_TASK_RUNS = 1_900
"""Steps that have a task run of their own, each time that Prefect starts the flow. Each costs
Prefect's server about 25 ms, and stays in its database with states, events and log. The other tasks
of a run are fewer than 100."""

_LOGGER = logging.getLogger("prefect_imageqa.flows")


class StepRunner:
    """Runs the steps of all passes in threads; a step is a task that many batches go through.

    The first `MAX_TASK_RUNS` have a task run each. The others are plain calls, with the same
    results and retries.
    """

    def __init__(self) -> None:
        self._submitted = 0
        self._threads = ThreadPoolExecutor(THREADS, "step")  # which are started when needed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def submit(self, step: Task[..., R], *arguments: Any) -> Pending[R]:
        """Run a step; does not wait for it.

        Args:
            step: the task.
            arguments: those of the task; what another step will return may be one.
        """
        self._submitted += 1
        if self._submitted <= MAX_TASK_RUNS:
            # Neither values nor results are searched for futures: they may be large.
            passed = [opaque(each) if _is_pending(each) else quote(each) for each in arguments]
            return freed_when_done(step.submit(*passed))
        if self._submitted == MAX_TASK_RUNS + 1:
            _LOGGER.info(
                "there are %s task runs, and more would burden Prefect's server: the batches from "
                "here on have none, and are only seen in progress and log",
                f"{MAX_TASK_RUNS:,}",
            )
        # In the context of the flow run, for its log.
        return self._threads.submit(copy_context().run, _call, step, arguments)


def call(step: Task[..., R], *arguments: Any) -> R:
    """Call the function of a task as its task run would: with the retries of the task.

    Raises:
        Exception: what the last call raises.
    """
    left, delay = step.retries, step.retry_delay_seconds
    while True:
        try:
            return step.fn(*arguments)
        except Exception as error:
            if not left or not _is_retried(step, error):
                raise
            left -= 1
            _LOGGER.warning("%s failed and is called again: %r", step.name, error)
            time.sleep(delay if isinstance(delay, int | float) else 0)


def _call(step: Task[..., R], arguments: Sequence[Any]) -> R:
    return call(step, *(each.result() if _is_pending(each) else each for each in arguments))


def _is_retried(step: Task[..., Any], error: Exception) -> bool:
    condition: Any = step.retry_condition_fn
    return condition is None or bool(condition(step, None, Failed(data=error)))


def _is_pending(value: object) -> bool:
    return isinstance(value, PrefectFuture | Future)
