"""The artifacts, names and logs of a run in Prefect, and that none of them discloses a secret."""

import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, Log
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import ImageQAError, Limits, ObjectStore, VLLMEndpoint, image_qa
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.flows.publish import artifacts
from prefect_imageqa.flows.publish.artifacts import show_gallery, show_progress, show_results
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.reporting import report
from prefect_imageqa.tasks.reporting.markdown import artifact_key

API_KEY = "stub-api-key-5f2c"
S3_SECRET = "test-secret"


@pytest.fixture(autouse=True, scope="module")
def _without_plots() -> Iterator[None]:
    """Reports are written for their sampled rows, but plots are slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_plots", lambda _: [])
        yield


def wait_for(read: Callable[[], Any], fits: Callable[[Any], bool], seconds: float = 120) -> Any:
    """Poll until the value fits: logs, events and task runs reach the API with a delay."""
    deadline = time.monotonic() + seconds
    while not fits(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.2)
    return value


def artifacts_of(client: SyncPrefectClient, run: uuid.UUID) -> dict[str, Artifact]:
    """The artifacts of a flow run, by the last part of their keys."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    )
    return {str(artifact.key).rpartition("-")[2]: artifact for artifact in found}


@pytest.fixture
def run_with_progress(drawn: Path, tmp_path: Path) -> Callable[..., uuid.UUID]:
    """Runs a function in a flow that shows its progress; returns the flow run's id."""

    def run(work: Callable[[RunProgress], None]) -> uuid.UUID:
        progress = RunProgress()
        source = open_dataset(str(drawn / "dataset.json"))

        @flow(name="with-progress", persist_result=False)
        def progress_flow() -> str:
            progress.started = time.monotonic()
            with show_progress(ObjectStore(uri=str(tmp_path / "out")), source, progress):
                work(progress)
            return str(flow_run.id)

        return uuid.UUID(progress_flow())

    return run


def test_progress_is_updated_during_a_run(
    run_with_progress: Callable[..., uuid.UUID],
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.2)
    seen: list[Any] = []

    def work(progress: RunProgress) -> None:
        progress.ok, progress.quarantined = 5, 1
        run = uuid.UUID(str(flow_run.id))
        seen.extend(
            wait_for(
                lambda: list(artifacts_of(client, run).values()),
                lambda found: any(artifact.data == 50.0 for artifact in found),
            )
        )
        progress.ok = 11
        progress.sources = [ClientStats(notes=("waiting for S3: 12 s",))]

    [progress] = artifacts_of(client, run_with_progress(work)).values()
    assert [artifact.id for artifact in seen] == [progress.id]
    assert progress.type == "progress"
    assert progress.data == 100.0
    assert progress.description
    assert progress.description.startswith("12 of 12, ")
    assert progress.description.endswith(r"1 quarantined; dataset\.json; waiting for S3\: 12 s")


def test_a_run_continues_if_progress_cannot_be_published(
    run_with_progress: Callable[..., uuid.UUID],
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = threading.Semaphore(0)

    def fail(*_: object) -> None:
        tried.release()
        raise RuntimeError("503 Service Unavailable\nfor url 'http://...'")

    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.01)
    monkeypatch.setattr(artifacts, "create_progress_artifact", fail)

    def work(progress: RunProgress) -> None:
        assert all(tried.acquire(timeout=60) for _ in range(3))

    assert artifacts_of(client, run_with_progress(work)) == {}
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert warnings == ["could not publish the progress artifact: 503 Service Unavailable"]


def test_a_hanging_update_does_not_block_the_run(
    run_with_progress: Callable[..., uuid.UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, released = threading.Event(), threading.Event()

    def hang(*_: object) -> uuid.UUID:
        started.set()
        released.wait()  # beyond the run, which could not end if it waited for this
        return uuid.uuid4()

    monkeypatch.setattr(artifacts, "FINAL_UPDATE_SECONDS", 0.1)
    monkeypatch.setattr(artifacts, "create_progress_artifact", hang)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda *_: None)
    try:
        run_with_progress(lambda _: None)
        assert started.wait(60)
    finally:
        released.set()


def test_results_that_cannot_be_published_do_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, client: SyncPrefectClient
) -> None:
    summary = RunSummary(output=str(tmp_path), rows=1, ok=1)

    @flow(name="with-results", persist_result=False)
    def results_flow() -> str:
        output = ObjectStore(uri=str(tmp_path))  # there is no quarantine.jsonl
        show_results(output, summary, dataset="d", model="m", files={"Pairs": "pairs.parquet"})
        show_gallery(output, [], of=1, dataset="d")
        return str(flow_run.id)

    published = artifacts_of(client, uuid.UUID(results_flow()))
    assert sorted(published) == ["gallery", "summary"]
    assert published["summary"].key == artifact_key(str(tmp_path), "summary")
    assert "could not publish the quarantine artifact" in caplog.text


FINISHED = "Finished in state Completed()"
HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) ![x](https://evil.example/x.png)"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows: one without its image, one with a hostile reply."""
    folder = tmp_path_factory.mktemp("drawn")
    write_demo_dataset(folder, 12, seed=5)
    rows = json.loads((folder / "dataset.json").read_bytes())
    rows[3]["image"] = "images/missing.png"
    rows[7]["conversation"] = f"STUB text **Question:** {HOSTILE}\n**Answer:** {HOSTILE}"
    (folder / "dataset.json").write_text(json.dumps(rows))
    return folder / "dataset.json"


@pytest.fixture(scope="module")
def output(stub: Any, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over the first ten rows, in batches of eight; with its report."""
    path = tmp_path_factory.mktemp("output") / "qa"
    image_qa(str(dataset), str(path), endpoint=stub.url, max_rows=10, limits=Limits(batch_size=8))
    return path


@pytest.fixture
def run_id(output: Path) -> uuid.UUID:
    """The flow run that wrote the output."""
    return uuid.UUID(json.loads((output / "manifest.json").read_bytes())["run"])


def logs_of(client: SyncPrefectClient, run: uuid.UUID, last: str = FINISHED) -> list[Log]:
    """The logs of a finished flow run, as soon as the last one has arrived."""
    chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    logs: list[Log] = wait_for(
        lambda: client.read_logs(chosen, limit=200),
        lambda logs: any(log.message.startswith(last) and log.task_run_id is None for log in logs),
    )
    return logs


def test_a_run_publishes_its_results(
    output: Path, run_id: uuid.UUID, client: SyncPrefectClient
) -> None:
    published = artifacts_of(client, run_id)
    assert sorted(published) == ["gallery", "progress", "quarantine", "summary"]
    assert {artifact.key for artifact in published.values()} == {
        artifact_key(str(output), what) for what in published
    }
    assert published["progress"].data == 100.0
    assert "| answered | 9 |" in str(published["summary"].data)
    assert r"| image\_missing | 1 | 10.00% |" in str(published["summary"].data)
    gallery = str(published["gallery"].data)
    assert gallery.count("![](data:image/jpeg;base64,") == 9
    assert gallery.count(r"<br>*dataset\.json") == 10
    assert (
        gallery.count("<br>images\\/") + gallery.count("| images\\/") == 10
    )  # the missing one, too
    assert not re.search(r"(?<!\\)<(?!br>)|\]\((?!data:)", gallery)
    assert r"\<script\>alert" in gallery.replace("<br>", "")
    [row] = json.loads(str(published["quarantine"].data))
    assert (row["rows"], row["examples"], row["kind"]) == (1, "dataset.json[3]", "image_missing")


def test_runs_and_task_runs_have_names(run_id: uuid.UUID, client: SyncPrefectClient) -> None:
    assert client.read_flow_run(run_id).name.startswith("dataset.json to qa, first 10, ")
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    names = wait_for(
        lambda: {task.name for task in client.read_task_runs(flow_run_filter=chosen)},
        # The name of a task run may come a little after the task run.
        lambda names: len(names) >= 8 and "export" in names,
    )
    assert names == {
        *("load-dataset.json", "prompt-0-7", "prompt-8-9"),
        *("generate-1", "parse-and-store-1", "generate-2", "parse-and-store-2", "export"),
    }


def test_a_run_logs_one_line_per_batch(run_id: uuid.UUID, client: SyncPrefectClient) -> None:
    logs = logs_of(client, run_id)
    messages = [log.message for log in logs if log.task_run_id is None]
    assert {text[:8] for text in messages if "batch" in text} == {"batch 1:", "batch 2:"}
    assert messages[-2:] == ["9 answered, 1 quarantined: 1 image_missing", FINISHED]
    assert len(messages) == 6  # those, the columns, and Prefect's own at the start
    assert {log.message for log in logs if log.task_run_id} == {FINISHED}


@pytest.fixture
def blocks(s3: str, keyed_stub: Any) -> tuple[str, str]:
    """Names of saved blocks with secrets: endpoint and store."""
    name = f"block-{uuid.uuid4().hex[:8]}"
    saved: list[Any] = [
        VLLMEndpoint(urls=[keyed_stub.url], api_key=API_KEY),
        ObjectStore(
            uri=s3,
            access_key_id="test-key",
            secret_access_key=S3_SECRET,
            endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        ),
    ]
    for block in saved:
        block.save(name)
    return name, name


def runs_since(api: str, start: datetime) -> list[str]:
    """Ids of the flow runs that started after a moment, oldest first."""
    chosen = {"flow_runs": {"start_time": {"after_": start.isoformat()}}}
    reply = httpx.post(f"{api}/flow_runs/filter", json=chosen | {"sort": "START_TIME_ASC"})
    return [run["id"] for run in reply.raise_for_status().json()]


def everything(api: str, start: datetime) -> Iterator[tuple[str, str]]:
    """All that Prefect's API returns to anyone who may see blocks, and the runs since a moment."""
    own = {"flow_run_id": {"any_": runs_since(api, start)}}
    filters: dict[str, dict[str, Any]] = {
        "logs": {"logs": own},
        "flow_runs": {"flow_runs": {"start_time": {"after_": start.isoformat()}}},
        "task_runs": {"task_runs": own},
        "artifacts": {"artifacts": own},
        "artifacts/latest": {"artifacts": own},
    }
    kinds = ["block_documents", "block_types", "block_schemas", "flows", "variables", "deployments"]
    for kind in [*filters, *kinds]:
        offset, page = 0, [None]
        while page:
            body = {"limit": 200, "offset": offset, **filters.get(kind, {})}
            reply = httpx.post(f"{api}/{kind}/filter", json=body)
            page = reply.raise_for_status().json()
            offset += 200
            yield kind, reply.text
    wanted = {"occurred": {"since": start.isoformat()}}
    reply = httpx.post(f"{api}/events/filter", json={"limit": 50, "filter": wanted})
    yield "events", reply.raise_for_status().text
    while following := reply.json()["next_page"]:
        reply = httpx.get(following).raise_for_status()
        yield "events", reply.text


def test_no_secret_is_disclosed(
    with_report: None,
    blocks: tuple[str, str],
    s3: str,
    dataset: Path,
    client: SyncPrefectClient,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    endpoint, store = blocks
    start = datetime.now(UTC)
    output = ObjectStore(uri=f"{s3}/{store}")
    arguments: dict[str, Any] = {"endpoint": endpoint, "store": store}
    with caplog.at_level(logging.DEBUG):
        summary = image_qa(str(dataset), f"{output.uri}/out", **arguments)
        with pytest.raises(ImageQAError):  # a failing run logs more
            image_qa(str(dataset), f"{output.uri}/out", **arguments | {"model": "unknown"})
    assert summary.ok == 11
    api = PREFECT_API_URL.value()
    assert api
    completed, failed = runs_since(api, start)
    logs_of(client, uuid.UUID(completed))
    logs_of(client, uuid.UUID(failed), "Finished in state Failed")
    # Markdown has backslashes before punctuation.
    texts = [(kind, text.replace("\\", "")) for kind, text in everything(api, start)]
    kinds = {kind for kind, text in texts if store in text}
    assert {"flow_runs", "artifacts", "block_documents", "events"} <= kinds
    assert {"logs", "task_runs"} <= {kind for kind, text in texts if text != "[]"}
    texts += [("log records", caplog.text), ("console", "".join(capfd.readouterr()))]
    texts += [(name, output.read(name).decode(errors="replace")) for name in output.list()]
    leaks = [
        (kind, secret) for kind, text in texts for secret in (API_KEY, S3_SECRET) if secret in text
    ]
    assert leaks == []
    assert not [
        kind for kind, text in texts if kind in {"logs", "log records"} and ";base64," in text
    ]
