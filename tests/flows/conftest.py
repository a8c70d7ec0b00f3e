"""Fixtures of the flow tests: a Prefect server, small datasets, and ways to keep runs short."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.workers.process import ProcessWorker
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset

WriteRows = Callable[[list[str]], str]

BACKGROUND_LOGGERS = ("asyncio", "prefect._internal", "prefect.events")

TOLD_STYLE = """---
name: told
version: 1
description: Asks what the table says.
reply: pairs
---
# user
never sent

# questions
STUB text {{ told }}

# answer
{% if question == "Broken?" %}STUB finish length{% else %}STUB text It is {{ question }}{% endif %}
"""


@pytest.fixture(scope="session", autouse=True)
def _on_prefect_server(prefect_server: None) -> Iterator[None]:
    """Run every flow on the tests' own Prefect server.

    Without Prefect's heartbeats of flow runs: each run would wait up to 1 s for the end of their
    thread.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(autouse=True)
def _no_background_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keep out of `caplog` what Prefect's threads log, at any time, about runs of other tests."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.name.startswith(BACKGROUND_LOGGERS)

    caplog.handler.addFilter(keep)
    yield
    caplog.handler.removeFilter(keep)


@pytest.fixture
def with_report() -> None:
    """Requested by tests that look at the report of a run, or at everything a run writes."""


@pytest.fixture(autouse=True)
def _without_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, which takes longer than most runs on a few rows.

    Tests that look at it request `with_report`. Processes that a test starts are not affected.
    """
    if "with_report" not in request.fixturenames:
        update_report = "prefect_imageqa.flows.publish.publish._update_report"
        monkeypatch.setattr(update_report, lambda *_: ([], None))


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between attempts; how many there are stays as it is.

    Not for tests in which a server answers with an error and then crashes: whether it has crashed
    is checked at once here.
    """
    sender = "prefect_imageqa.serving.client.sender"
    monkeypatch.setattr(f"{sender}.backoff", lambda _: 0.02)
    monkeypatch.setattr(f"{sender}.CRASH_CHECK_SECONDS", 0.0)
    monkeypatch.setattr("prefect_imageqa.tasks.object_store.s3._FIRST_BACKOFF", 0.02)


@pytest.fixture
def runs_of() -> Callable[[str | Path], list[FlowRun]]:
    """Reads the latest flow runs that wrote to an output from Prefect's API; there must be one."""

    def read(output: str | Path) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
        found = [run for run in runs if run.parameters.get("output") == str(output)]
        assert found
        return found

    return read


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect server."""
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def pool(client: SyncPrefectClient) -> str:
    """A work pool of processes."""
    name = f"pool-{uuid4().hex[:8]}"
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    return name


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with `dataset.json` of 12 rows and their images."""
    folder = tmp_path / "drawn"
    write_demo_dataset(folder, 12, seed=5)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes a dataset with one row per user text, all about one small image; returns its path."""

    def write(texts: list[str]) -> str:
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(folder / "red.png")
        rows = [{"image": "red.png", "conversation": text} for text in texts]
        (folder / "rows.json").write_text(json.dumps(rows))
        return str(folder / "rows.json")

    return write


@pytest.fixture
def told(drawn: Path, tmp_path: Path) -> dict[str, Any]:
    """Parameters of a run on three rows, whose questions and answers are those of the table."""
    style = tmp_path / "told.md"
    style.write_text(TOLD_STYLE)
    texts = ["1. One? 2. Two?", "Broken?", "1. Three? 2. Broken?"]
    images = [str(drawn / "images" / f"00{number}.png") for number in range(3)]
    texts = [text.replace(" 2.", "\n2.") for text in texts]
    frame = pd.DataFrame({"image": images, "told": texts})
    return {"dataset": frame, "output": str(tmp_path / "out"), "style": str(style)}
