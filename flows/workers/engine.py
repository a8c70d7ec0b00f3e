"""What starts the workers of a run: an engine, such as processes or a work pool."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .job import WorkerJob


class StartedWorker(Protocol):
    """A worker that an engine has started. Only one thread uses it."""

    @property
    def note(self) -> str:
        """What it waits for before it works, such as a free slot; empty if it does not."""

    @property
    def ended(self) -> str | None:
        """Why it has ended, in one line; None while it works or may still start."""

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


@contextmanager
def open_engine(workers: Workers) -> Iterator[Engine]:
    """Open the engine that a run is to have.

    Raises:
        ImageQAError: its package is not installed, or its address does not answer.
    """
    with _find(workers.engine)(workers) as engine:
        yield engine


def _find(name: str) -> OpenEngine:
    # Each is imported only where it is used: Ray and Dask need not be installed.
    match name:
        case "threads":
            from .threads import open_threads as found
        case "processes":
            from .processes import open_processes as found
        case "work-pool":
            from .work_pool import open_work_pool as found
        case "ray":
            from .ray_engine import open_ray as found
        case "dask":
            from .dask_engine import open_dask as found
        case _:
            raise ImageQAError(f"there is no engine {name!r}")
    return found
