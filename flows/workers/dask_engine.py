"""Engine dask: the workers are tasks on a Dask cluster. Only `engine_host` imports this module."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import dask
from distributed import Client, Future, KilledWorker, LocalCluster

from ...serving.printable import printable
from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .cluster_task import run_worker, why_lost
from .job import WorkerJob

_CONNECT_SECONDS = 20.0
_START_SECONDS = 15.0  # within which a worker says how it is, if a thread is free
_CHECK_SECONDS = 3.0


@contextmanager
def connect(workers: Workers) -> Iterator["DaskTasks"]:
    """Connect to a cluster, or start a local one with a process for each worker.

    Raises:
        ImageQAError: the address cannot be used.
    """
    address = workers.engine_address or ""
    with ExitStack() as stack:
        if not address:
            # A worker that was killed is replaced by the run, which says so.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
        cluster = address or stack.enter_context(_local_cluster(workers.workers))
        try:
            client = Client(cluster, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ImageQAError(
                f"no Dask cluster can be used at {printable(address)}: {why_lost(error)}"
            ) from error
        with client:
            yield DaskTasks(client, is_local=not address)


def _local_cluster(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=None,  # Dask's own would divide the machine by its cores, and kill workers
        dashboard_address=None,
        security=True,  # otherwise other users of this machine could run code in it
    )


class DaskTasks:
    """Starts workers as tasks of a cluster."""

    def __init__(self, client: Client, is_local: bool) -> None:
        self.client = client
        self.is_local = is_local
        self._full = ""
        self._checked = float("-inf")

    def start(self, job: WorkerJob) -> "DaskTask":
        """Submit a worker."""
        result = self.client.submit(
            run_worker,
            job.model_dump(mode="json"),
            key=f"imageqa-{job.run}-{job.worker}",
            pure=False,
            retries=0,
        )
        return DaskTask(self, result)

    def full(self) -> str:
        """A line if no thread of the cluster is free; there is one for each local worker."""
        now = time.monotonic()
        if not self.is_local and now - self._checked > _CHECK_SECONDS:
            self._checked = now
            threads, tasks = self.client.nthreads(), self.client.processing()
            is_free = any(len(tasks.get(worker, ())) < count for worker, count in threads.items())
            self._full = "" if is_free else "no thread of the Dask cluster is free"
        return self._full


class DaskTask:
    """A worker that is a task.

    If its process is lost, a cluster that exists starts the task again a few times by itself.
    """

    def __init__(self, tasks: DaskTasks, result: Future) -> None:
        self._tasks = tasks
        self._result = result
        self._submitted = time.monotonic()

    @property
    def note(self) -> str:
        """What it waits for before it works."""
        has_time = time.monotonic() - self._submitted < _START_SECONDS
        return "" if has_time or self._result.status != "pending" else self._tasks.full()

    @property
    def ended(self) -> str | None:
        """Why it has ended; None while it works or may still start.

        Raises:
            ImageQAError: the cluster is lost.
        """
        match self._result.status:
            case "pending":
                return None
            case "finished":
                return str(self._result.result())
            case "error":
                error = self._result.exception()
                is_killed = isinstance(error, KilledWorker)
                return "its process was killed" if is_killed else why_lost(error)
        if self._tasks.client.status != "running":
            raise ImageQAError("the connection to the Dask cluster was lost")
        return "it was cancelled"

    def stop(self) -> None:
        """Cancel it; a local cluster also ends its process, which has nothing else to do.

        A task that runs cannot be ended from outside: it ends when it finds that it was told to.
        """
        client, key = self._tasks.client, self._result.key
        places = [worker for worker, keys in client.processing().items() if key in keys]
        self._result.cancel(force=True)
        if self._tasks.is_local and places:
            with suppress(TimeoutError):
                client.restart_workers(places)
