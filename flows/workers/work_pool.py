"""Workers as flow runs of a deployment, which a work pool starts: on other machines, in pods."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shlex import quote
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Crashed

from ...serving.printable import printable
from ...tasks.errors import PrefectServerError
from ...tasks.runs.workers import Workers
from .deployment import (
    DEPLOYMENT,
    NO_ANSWER,
    find_pool,
    named_errors,
    one_attempt,
    open_client,
    server,
)
from .job import WorkerJob

POLL_SECONDS = 3.0
"""How often the states of the flow runs are read, at most."""

POLL_SHARE = 0.3
"""How much of the time that may take: a thousand workers, or a slow server, take longer."""

START_SECONDS = 300.0
"""For how long to try to create a flow run while Prefect's server does not answer."""

STOP_SECONDS = 15.0
"""How long a stopped flow run may take to end. Then nobody is left who could report its end."""

CLOSE_POLL_SECONDS = 0.5
"""How often the states are read while the run waits for nothing but the end of flow runs."""

_PAGE = 200
"""How many flow runs Prefect's server returns at once."""


@contextmanager
def open_work_pool(workers: Workers) -> Iterator["WorkPool"]:
    """Find the deployment of the workers; flow runs that have not started are cancelled on exit.

    Raises:
        PrefectServerError: there is only a temporary server, or no such deployment on the server;
            or its work pool is paused.
    """
    name = workers.engine_address or DEPLOYMENT
    with open_client() as client:
        engine = WorkPool(client, name, find_pool(client, name))
        try:
            yield engine
        finally:
            engine.close()


class FlowRunWorker:
    """A worker that is a flow run.

    Attributes:
        job: what it is told.
        name: of the flow run.
        id: of the flow run; None while it is not created.
        state: of the flow run, as it was read last.
        problem: why it cannot be created; empty if it can.
        stopped: when it was stopped, as by `time.monotonic()`.
    """

    def __init__(self, pool: "WorkPool", job: WorkerJob, name: str) -> None:
        self._pool = pool
        self._asked = time.monotonic()
        self.job = job
        self.name = name
        self.id: UUID | None = None
        self.state: State[Any] | None = None
        self.problem = ""
        self.stopped: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has not started, but may."""
        state = self.state
        return not self.is_final and (state is None or state.is_scheduled() or state.is_pending())

    @property
    def is_final(self) -> bool:
        """Whether nothing of it is left, or will come."""
        if self.id is None:
            return bool(self.problem) or self.stopped is not None
        return self.state is not None and self.state.is_final()

    @property
    def note(self) -> str:
        """What it waits for before it works."""
        self._pool.refresh()
        if not self.is_waiting:
            return ""
        if self.id is None:
            return f"waits for {server()}, which does not answer"
        return f"its flow run waits for {self._pool.waits_for}"

    @property
    def ended(self) -> str | None:
        """Why it has ended, in one line; None while it works or may still start."""
        self._pool.refresh()
        if self.id is None and time.monotonic() - self._asked > START_SECONDS:
            self.problem = f"{server()} has not answered for {START_SECONDS:.0f} s"
        if not self.is_final:
            return None
        if self.state is None:
            return f"its flow run was not created: {self.problem or 'it was stopped'}"
        said = f": {self.state.message}" if self.state.message else ""
        return printable(f"its flow run is {self.state.name}{said}", 300)

    def stop(self) -> None:
        """End it now, as the button in Prefect's UI does."""
        if self.stopped is None:
            self.stopped = time.monotonic()
            self._pool.refresh_soon()


class WorkPool:
    """Starts workers as flow runs of a deployment.

    Args:
        client: of Prefect's server.
        deployment: name of the deployment, such as `image-qa-worker/worker`.
        pool: name of its work pool; None if a process serves it.
    """

    def __init__(self, client: SyncPrefectClient, deployment: str, pool: str | None) -> None:
        self._client = client
        self._deployment = deployment
        self._pool = pool
        self._run_name = flow_run.name
        self._id = uuid4().hex
        self._workers: list[FlowRunWorker] = []
        self._pool_status: WorkPoolStatus | None = None
        self._next_poll = 0.0

    def start(self, job: WorkerJob) -> FlowRunWorker:
        """Create the flow run of a worker; later, if Prefect's server does not answer now.

        Raises:
            PrefectServerError: the deployment is gone, or is not one of such workers.
        """
        worker = FlowRunWorker(self, job, f"worker {job.worker} of {self._run_name or job.run}")
        try:
            self._create(worker)
        except NO_ANSWER:  # such as 503: SQLite does not take many requests at once
            self.refresh_soon()
        self._workers.append(worker)
        return worker

    @property
    def waits_for(self) -> str:
        """What flow runs that have not started wait for."""
        if self._pool is None:
            return f"the process that serves {self._deployment}"
        if self._pool_status == WorkPoolStatus.PAUSED:
            return f"work pool {self._pool!r}, which is paused"
        if self._pool_status == WorkPoolStatus.NOT_READY:
            command = f"prefect worker start --pool {quote(self._pool)}"
            return f"a worker of work pool {self._pool!r}, which has none: `{command}`"
        return f"a worker of work pool {self._pool!r}"

    def refresh(self) -> None:
        """Read the states of all flow runs, unless that was done recently."""
        began = time.monotonic()
        if began >= self._next_poll:
            self._poll()
            took = time.monotonic() - began
            self._next_poll = began + max(POLL_SECONDS, took / POLL_SHARE)

    def refresh_soon(self) -> None:
        """Read the states of all flow runs the next time that one is needed."""
        self._next_poll = 0.0

    def close(self) -> None:
        """Cancel flow runs that have not started, and wait until those that were stopped end."""
        for worker in self._workers:
            if worker.is_waiting:
                worker.stop()
        stopping = [one for one in self._workers if one.stopped and not one.is_final]
        deadline = max((one.stopped or 0.0 for one in stopping), default=0.0) + STOP_SECONDS
        while not all(one.is_final for one in stopping):
            self._poll()
            if time.monotonic() > deadline + 2 * CLOSE_POLL_SECONDS:  # the server does not answer
                break
            time.sleep(CLOSE_POLL_SECONDS)

    def _poll(self) -> None:
        """Read the states of all flow runs; create and cancel those that are to be."""
        current = [worker for worker in self._workers if not worker.is_final]
        with suppress(*NO_ANSWER), one_attempt():
            for worker in current:
                if worker.id is None:
                    self._create_late(worker)
            created = [worker for worker in current if worker.id]
            for first in range(0, len(created), _PAGE):
                self._read_states(created[first : first + _PAGE])
            if self._pool and any(worker.is_waiting for worker in created):
                self._pool_status = self._client.read_work_pool(self._pool).status
            for worker in created:
                if worker.stopped and not worker.is_final:
                    self._cancel(worker, time.monotonic() - worker.stopped)

    def _read_states(self, workers: list[FlowRunWorker]) -> None:
        by_id = {worker.id: worker for worker in workers if worker.id}
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(by_id)))
        found = self._client.read_flow_runs(flow_run_filter=chosen, limit=_PAGE)
        states = {run.id: run.state for run in found}
        for id_, worker in by_id.items():
            worker.state = states.get(id_, Crashed(message="somebody has deleted it"))

    def _cancel(self, worker: FlowRunWorker, waited: float) -> None:
        """Do what the button in the UI does; a flow run that then does not end is a leftover.

        It would take a slot of its work pool for ever.
        """
        assert worker.id  # noqa: S101 - it is created
        is_told = worker.state is not None and worker.state.is_cancelling()
        if is_told and waited < STOP_SECONDS:
            return
        state: State[Any] = Cancelling()
        if is_told:
            state = Cancelled(message="stopped by its run; nobody has reported its end")
        answer = self._client.set_flow_run_state(worker.id, state, force=is_told)
        worker.state = answer.state or worker.state

    def _create_late(self, worker: FlowRunWorker) -> None:
        try:
            self._create(worker)
        except PrefectServerError as error:
            worker.problem = str(error)

    def _create(self, worker: FlowRunWorker) -> None:
        """Create the flow run of a worker: once, even if the request is made again."""
        with one_attempt(), named_errors(self._deployment):
            # In the context of the run's flow, Prefect shows it under that.
            run: Any = run_deployment(
                self._deployment,
                parameters={"job": worker.job.model_dump(mode="json")},
                flow_run_name=worker.name,
                idempotency_key=f"{self._id}-{worker.job.worker}",
                timeout=0,
            )
        worker.id, worker.state = run.id, run.state
