"""Errors are raised: Prefect's retries work as for any flow, and errors are logged in one line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule
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


@pytest.fixture
def proxy(stub: Any) -> Iterator[FaultProxy]:
    """A gateway before the model's server."""
    with FaultProxy("127.0.0.1", urlsplit(stub.url).port or 0) as proxy:
        yield proxy


def test_a_flow_run_is_retried(
    proxy: FaultProxy, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Rejects the row, and the request by which the client tests whether any is accepted.
    proxy.set_rules([Rule("respond", status=401, path="/chat/", count=2)])
    flow = image_qa.with_options(retries=2, flow_run_name="retried")
    summary = flow(write_rows(["What?"]), str(tmp_path / "out"), endpoint=proxy.url)
    assert summary.ok == 1
    assert states_of("retried") == ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]
    assert proxy.requests["POST"] == 3
    assert "Traceback" not in caplog.text


def test_a_run_that_fails_permanently_raises_the_reason(
    proxy: FaultProxy, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.set_rules([Rule("respond", status=401, path="/chat/")])
    flow = image_qa.with_options(retries=1, flow_run_name="failed")
    with pytest.raises(EndpointError, match=f"{proxy.url} refuses to answer: HTTP 401"):
        flow(write_rows(["What?"]), str(tmp_path / "out"), endpoint=proxy.url)
    states = ["Pending", "Running", "AwaitingRetry", "Running", "Failed"]
    assert states_of("failed") == states
    assert "Traceback" not in caplog.text
    assert f"{proxy.url} refuses to answer: HTTP 401" in caplog.text
