"""Engine ray: the workers are tasks on a Ray cluster. Only `engine_host` imports this module."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, WorkerCrashedError

from ...serving.printable import printable
from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .cluster_task import run_worker, why_lost
from .job import WorkerJob

_OBJECT_STORE_BYTES = 80 * 2**20  # nearly the least that Ray allows: no data passes through it
_START_SECONDS = 15.0  # within which a worker says how it is, if a CPU is free
_LOOK_SECONDS = 0.5
_CPU_CHECK_SECONDS = 3.0


@contextmanager
def connect(workers: Workers) -> Iterator["RayTasks"]:
    """Connect to a cluster, or start a local one with a CPU for each worker.

    Raises:
        ImageQAError: the address cannot be used.
    """
    if address := workers.engine_address:
        try:
            ray.init(address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ImageQAError(
                f"no Ray cluster can be used at {printable(address)}: {why_lost(error)}"
            ) from error
    else:
        ray.init(
            "local",
            num_cpus=workers.workers,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield RayTasks(is_local=not address)
    finally:
        ray.shutdown()


class RayTasks:
    """Starts workers as tasks of the cluster that this process is connected to."""

    def __init__(self, is_local: bool) -> None:
        self.full = ""
        self._task = ray.remote(run_worker).options(num_cpus=1, max_retries=0)
        self._is_local = is_local
        self._pending: dict[Any, RayTask] = {}
        self._looked = self._checked = float("-inf")

    def start(self, job: WorkerJob) -> "RayTask":
        """Submit a worker."""
        result = self._task.remote(job.model_dump(mode="json"))
        task = self._pending[result] = RayTask(self, result)
        return task

    def look(self) -> None:
        """Note which workers have ended and whether a CPU is free, if that was not done just now.

        One request for all of them: over `ray://` each costs a round trip.
        """
        now = time.monotonic()
        if self._pending and now - self._looked > _LOOK_SECONDS:
            self._looked = now
            results = list(self._pending)
            done, _ = ray.wait(results, num_returns=len(results), timeout=0)
            for result in done:
                self._pending.pop(result).reason = _reason(result)
        if not self._is_local and now - self._checked > _CPU_CHECK_SECONDS:
            self._checked = now
            is_free = ray.available_resources().get("CPU", 0) >= 1
            self.full = "" if is_free else "no CPU of the Ray cluster is free"


class RayTask:
    """A worker that is a task."""

    def __init__(self, tasks: RayTasks, result: Any) -> None:
        self.reason: str | None = None
        self._tasks = tasks
        self._result = result
        self._submitted = time.monotonic()

    @property
    def note(self) -> str:
        """What it waits for before it works; there is a CPU for each worker of a local cluster."""
        self._tasks.look()
        return self._tasks.full if time.monotonic() - self._submitted > _START_SECONDS else ""

    @property
    def ended(self) -> str | None:
        """Why it has ended; None while it works or may still start."""
        self._tasks.look()
        return self.reason

    def stop(self) -> None:
        """Kill its process."""
        ray.cancel(self._result, force=True)


def _reason(result: Any) -> str:
    try:
        return str(ray.get(result))
    except WorkerCrashedError:
        return "its process was killed"
    except RayError as error:
        return why_lost(error)
