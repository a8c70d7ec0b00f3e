"""Engine threads: the workers are threads of the run's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .job import WorkerJob
from .worker import work


@contextmanager
def open_threads(workers: Workers) -> Iterator["Threads"]:  # noqa: ARG001
    """Open the engine; there is nothing to be opened."""
    yield Threads()


class Threads:
    """Starts workers as threads."""

    def start(self, job: WorkerJob) -> "ThreadWorker":
        """Start a worker."""
        return ThreadWorker(job)


class ThreadWorker:
    """A worker in a thread of its own."""

    note = ""

    def __init__(self, job: WorkerJob) -> None:
        self.ended: str | None = None
        self._job = job
        self._stopped = threading.Event()
        threading.Thread(target=self._work, name=f"worker-{job.worker}", daemon=True).start()

    def stop(self) -> None:
        """End it as soon as it looks."""
        self._stopped.set()

    def _work(self) -> None:
        reason = "it has ended"
        try:
            work(self._job, self._stopped)
        except ImageQAError as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self.ended = reason
