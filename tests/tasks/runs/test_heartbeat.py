"""Whether a run is alive: by its heartbeat, and on this machine by its process."""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from prefect_imageqa.tasks.runs import heartbeat
from prefect_imageqa.tasks.runs.heartbeat import this_process
from prefect_imageqa.tasks.runs.run_record import RunRecord

RecordOf = Callable[..., RunRecord]


@pytest.mark.parametrize(
    ("state", "ago", "live"),
    [
        ("running", 5, True),
        ("waiting", 5, True),
        ("running", 65, False),
        ("running", -30, True),
        ("running", -75, False),
        ("failed", 5, False),
        ("interrupted", 5, False),
        ("completed", 5, False),
    ],
)
def test_a_run_on_another_machine_is_alive_while_it_has_a_heartbeat(
    state: str, ago: float, live: bool, record_of: RecordOf
) -> None:
    """Clocks may differ a little, but a heartbeat far in the future is invalid."""
    assert record_of(state=state, ago=ago).is_live is live


def process_of(pid: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid)
        return dict(this_process())


def test_a_run_on_this_machine_needs_a_process_as_well(
    record_of: RecordOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"state": "running", "ago": 1}
    own = this_process()
    # A run of this process that failed, and could not record that, is not alive.
    assert not record_of(**running, **own).is_live
    monkeypatch.setattr(heartbeat, "ACTIVE_RUNS", {record_of(**running).run})
    assert record_of(**running, **own).is_live
    with subprocess.Popen(["sleep", "60"]) as other:
        run = record_of(**running, **process_of(other.pid, monkeypatch))
        assert run.is_live
        other.kill()
    assert not run.is_live
    # The PID exists, but its process started at another time.
    reused = own | {"process": f"{own['process'].partition('-')[0]}-1"}
    assert not record_of(**running, **reused).is_live
    assert record_of(**running, **reused | {"machine": "0" * 16}).is_live
    # It has 300 s to reach its store; after that, it hangs.
    assert record_of(state="running", ago=350, **own).is_live
    assert not record_of(state="running", ago=365, **own).is_live


@pytest.mark.parametrize("process", ["x", "-1", "1" * 250, "..:..-1"])
def test_a_run_with_an_invalid_process_is_not_alive(process: str, record_of: RecordOf) -> None:
    invalid = {**this_process(), "process": process}
    assert not record_of(state="running", ago=5, **invalid).is_live
