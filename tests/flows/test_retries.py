"""Errors are raised: Prefect's retries work as for any flow, and errors are logged in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect_imageqa import EndpointError, image_qa

WriteRows = Callable[[list[str]], str]


def states_of(name: str) -> list[str]:
    """All states of the only flow run with a name."""
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
        [run] = client.read_flow_runs(flow_run_filter=named)
        response = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run.id)})
    states = sorted(response.json(), key=lambda state: state["timestamp"])
    return [state["name"] for state in states]


def test_a_flow_run_is_retried(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start_stub()
    flow = image_qa.with_options(retries=2, flow_run_name="retried")
    dataset = write_rows(["STUB once 401"])
    summary = flow(dataset, str(tmp_path / "out"), endpoint=stub.url)
    assert summary.ok == 1
    assert states_of("retried") == ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]
    assert stub.stats()["requests"] == 2
    assert "Traceback" not in caplog.text


def test_a_run_that_fails_permanently_raises_the_reason(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start_stub()
    flow = image_qa.with_options(retries=1, flow_run_name="failed")
    dataset = write_rows(["STUB status 401"])
    with pytest.raises(EndpointError, match="the server refuses to answer: HTTP 401"):
        flow(dataset, str(tmp_path / "out"), endpoint=stub.url)
    states = ["Pending", "Running", "AwaitingRetry", "Running", "Failed"]
    assert states_of("failed") == states
    assert "Traceback" not in caplog.text
    assert "the server refuses to answer: HTTP 401" in caplog.text
