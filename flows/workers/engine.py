"""What starts the workers of a run: an engine, such as processes or a work pool."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol

from ...tasks.runs.workers import Workers
from .job import WorkerJob


class StartedWorker(Protocol):
    """A worker that an engine has started. Only one thread uses it."""

    @property
    def note(self) -> str:
        """What it waits for before it works, such as a free slot; empty if it does not."""

    @property
    def ended(self) -> str | None:
        """Why it has ended, in one line; None while it works or may still start.

        Raises:
            ImageQAError: the engine is lost, and all workers with it.
        """

    def stop(self) -> None:
        """End it now: it has been told to end, and has not."""


class Engine(Protocol):
    """Starts workers, each of which calls `work(job)`. Only one thread uses it."""

    def start(self, job: WorkerJob) -> StartedWorker:
        """Start a worker; does not wait until it works.

        Raises:
            ImageQAError: it cannot be started.
        """


OpenEngine = Callable[[Workers], AbstractContextManager[Engine]]
"""Opens an engine. What it has started for itself, such as a local cluster, ends with the block."""


_OPENERS = {
    "threads": "threads:open_threads",
    "processes": "processes:open_processes",
    "work-pool": "work_pool:open_work_pool",
    "ray": "hosted_engine:host_engine",
    "dask": "hosted_engine:host_engine",
}
"""By name: each is imported only where it is used."""


def open_engine(workers: Workers) -> AbstractContextManager[Engine]:
    """Open the engine that a run is to have.

    Raises:
        ImageQAError: its package is not installed, or its address does not answer.
    """
    module, _, name = _OPENERS[workers.engine].partition(":")
    open_it: OpenEngine = getattr(import_module(f".{module}", __package__), name)
    return open_it(workers)
