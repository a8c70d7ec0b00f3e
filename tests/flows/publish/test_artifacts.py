"""What a run shows in Prefect: progress, summary, gallery, quarantine, names, logs; no secret."""

import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
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
from prefect_imageqa.flows.publish.artifacts import progress_shown, show_results
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.tasks.loading.dataset import open_dataset
from prefect_imageqa.tasks.reporting.artifacts import artifact_key

API_KEY = "stub-api-key-5f2c"
S3_SECRET = "test-secret"


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


def artifacts_of(client: SyncPrefectClient, run: uuid.UUID) -> dict[str, Artifact]:
    """The artifacts of a flow run, by what they show."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    )
    return {str(artifact.key).rpartition("-")[2]: artifact for artifact in found}


@pytest.fixture
def watched(drawn: Path, tmp_path: Path) -> Callable[..., uuid.UUID]:
    """Runs something in a flow that shows its progress; returns the flow run's id."""

    def run(work: Callable[[RunProgress], None]) -> uuid.UUID:
        progress = RunProgress()
        source = open_dataset(str(drawn / "dataset.json"))

        @flow(name="watched", persist_result=False)
        def watched_flow() -> str:
            progress.started = time.monotonic()
            with progress_shown(ObjectStore(uri=str(tmp_path / "out")), source, progress):
                work(progress)
            return str(flow_run.id)

        return uuid.UUID(watched_flow())

    return run


def test_progress_is_shown_while_a_run_goes_on(
    watched: Callable[..., uuid.UUID], client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.2)
    seen: list[Any] = []

    def work(progress: RunProgress) -> None:
        progress.ok, progress.quarantined = 5, 1
        deadline = time.monotonic() + 30
        while not any(artifact.data == 50.0 for artifact in seen):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            seen.extend(artifacts_of(client, uuid.UUID(str(flow_run.id))).values())
        progress.ok = 11

    [progress] = artifacts_of(client, watched(work)).values()
    assert {artifact.id for artifact in seen} == {progress.id}
    assert progress.type == "progress"
    assert progress.data == 100.0
    assert progress.description
    assert progress.description.startswith(r"dataset\.json: 12 of 12 rows done, ")
    assert progress.description.endswith("rows/s, 1 quarantined")


def test_a_run_goes_on_where_nothing_can_be_shown(
    watched: Callable[..., uuid.UUID],
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = threading.Semaphore(0)

    def refuse(*_: object) -> None:
        tried.release()
        raise RuntimeError("503 Service Unavailable\nfor url 'http://...'")

    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.01)
    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)

    def work(progress: RunProgress) -> None:
        assert all(tried.acquire(timeout=10) for _ in range(3))

    assert artifacts_of(client, watched(work)) == {}
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert warnings == ["the progress artifact could not be shown: 503 Service Unavailable"]


def test_an_update_that_hangs_does_not_hold_a_run(
    watched: Callable[..., uuid.UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    monkeypatch.setattr(artifacts, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda *_: freed.wait(60))
    began = time.monotonic()
    watched(lambda _: None)
    assert time.monotonic() - began < 30
    freed.set()


def test_results_that_cannot_be_shown_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, client: SyncPrefectClient
) -> None:
    summary = RunSummary(output=str(tmp_path), rows=1, ok=1)

    @flow(name="shows", persist_result=False)
    def shows() -> str:
        output = ObjectStore(uri=str(tmp_path))  # there is no quarantine.jsonl
        show_results(output, summary, [], dataset="d", model="m", files={"Pairs": "pairs.parquet"})
        return str(flow_run.id)

    shown = artifacts_of(client, uuid.UUID(shows()))
    assert sorted(shown) == ["gallery", "summary"]
    assert shown["summary"].key == artifact_key(str(tmp_path), "summary")
    assert "the quarantine artifact could not be shown" in caplog.text


FINISHED = "Finished in state Completed()"
HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) ![x](https://evil.example/x.png)"


def run_of(output: Path) -> uuid.UUID:
    """The flow run that wrote an output."""
    return uuid.UUID(json.loads((output / "manifest.json").read_bytes())["run"])


def when(read: Callable[[], Any], fits: Callable[[Any], bool], seconds: float = 60) -> Any:
    """What is read, as soon as it fits: logs, events and task runs come to the API later."""
    deadline = time.monotonic() + seconds
    while not fits(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def logs_of(client: SyncPrefectClient, run: uuid.UUID) -> list[Log]:
    """The logs of a flow run that has completed."""
    chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    logs: list[Log] = when(
        lambda: client.read_logs(chosen, limit=200),
        lambda logs: any(log.message == FINISHED and log.task_run_id is None for log in logs),
    )
    return logs


@pytest.fixture
def table(drawn: Path) -> Path:
    """Twelve rows: one without its image, one with a hostile reply."""
    rows = json.loads((drawn / "dataset.json").read_bytes())
    rows[3]["image"] = "images/gone.png"
    rows[7]["conversation"] = f"STUB text **Question:** {HOSTILE}\n**Answer:** {HOSTILE}"
    (drawn / "dataset.json").write_text(json.dumps(rows))
    return drawn / "dataset.json"


def test_a_run_shows_what_came_of_it(
    stub: Any, table: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    output = tmp_path / "qa"
    image_qa(str(table), str(output), endpoint=stub.url, limits=Limits(batch_size=8))
    run = client.read_flow_run(run_of(output))
    assert run.name == "dataset.json to qa"

    shown = artifacts_of(client, run.id)
    assert sorted(shown) == ["gallery", "progress", "quarantine", "summary"]
    assert {artifact.key for artifact in shown.values()} == {
        artifact_key(str(output), what) for what in shown
    }
    assert shown["progress"].data == 100.0
    assert "| answered | 11 |" in str(shown["summary"].data)
    assert r"| image\_missing | 1 | 8.33% |" in str(shown["summary"].data)
    gallery = str(shown["gallery"].data)
    assert gallery.count("![](data:image/jpeg;base64,") == 11
    assert gallery.count("### ") == 12
    assert not re.search(r"(?<!\\)<|\]\((?!data:)", gallery)
    assert r"\<script\>alert" in gallery
    [row] = json.loads(str(shown["quarantine"].data))
    assert (row["row"], row["where"], row["kind"]) == (3, "dataset.json[3]", "image_missing")


def test_names_say_which_rows(
    stub: Any, table: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    image_qa(
        str(table),
        str(tmp_path / "qa"),
        endpoint=stub.url,
        max_rows=10,
        limits=Limits(batch_size=8),
    )
    run = client.read_flow_run(run_of(tmp_path / "qa"))
    assert run.name == "dataset.json to qa, first 10"
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    names = when(
        lambda: {task.name for task in client.read_task_runs(flow_run_filter=chosen)},
        lambda names: len(names) >= 10,
    )
    assert names == {
        *("load-dataset.json", "prompt-0-7", "prompt-8-9"),
        *("generate-1", "parse-1", "store-1", "generate-2", "parse-2", "store-2", "export"),
    }


def test_a_run_logs_a_line_a_batch(
    stub: Any, table: Path, tmp_path: Path, client: SyncPrefectClient
) -> None:
    image_qa(str(table), str(tmp_path / "qa"), endpoint=stub.url, limits=Limits(batch_size=6))
    logs = logs_of(client, run_of(tmp_path / "qa"))
    told = [log.message for log in logs if log.task_run_id is None]
    assert {message[:8] for message in told if "batch" in message} == {"batch 1:", "batch 2:"}
    assert told[-2:] == ["11 answered, 1 quarantined: 1 image_missing", FINISHED]
    assert len(told) == 5  # those, and Prefect's own at the start
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


def everything(api: str) -> Iterator[tuple[str, str]]:
    """All that Prefect's API tells, as it does to anyone who may see runs and blocks."""
    kinds = ["logs", "flow_runs", "task_runs", "artifacts", "artifacts/latest", "deployments"]
    for kind in [*kinds, "block_documents", "block_types", "block_schemas", "flows", "variables"]:
        offset, page = 0, [None]
        while page:
            reply = httpx.post(f"{api}/{kind}/filter", json={"limit": 200, "offset": offset})
            page = reply.raise_for_status().json()
            offset += 200
            yield kind, reply.text
    reply = httpx.post(f"{api}/events/filter", json={"limit": 50}).raise_for_status()
    yield "events", reply.text
    while following := reply.json()["next_page"]:
        reply = httpx.get(following).raise_for_status()
        yield "events", reply.text


def test_no_secret_is_told(
    blocks: tuple[str, str],
    s3: str,
    table: Path,
    client: SyncPrefectClient,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    endpoint, store = blocks
    place = ObjectStore(uri=f"{s3}/{store}")
    arguments: dict[str, Any] = {"endpoint": endpoint, "store": store}
    with caplog.at_level(logging.DEBUG):
        done = image_qa(str(table), f"{place.uri}/out", **arguments)
        with pytest.raises(ImageQAError):  # a run that fails tells more
            image_qa(str(table), f"{place.uri}/out", **arguments | {"model": "unknown"})
    assert done.ok == 11
    run = uuid.UUID(json.loads(place.read("out/manifest.json"))["run"])
    logs_of(client, run)
    api = PREFECT_API_URL.value()
    assert api
    # In Markdown, punctuation stands after backslashes.
    told = [(kind, text.replace("\\", "")) for kind, text in everything(api)]
    kinds = {kind for kind, text in told if store in text}
    assert {"flow_runs", "artifacts", "block_documents", "events"} <= kinds
    told += [("log records", caplog.text), ("console", "".join(capfd.readouterr()))]
    told += [(name, place.read(name).decode(errors="replace")) for name in place.list()]
    hits = [
        (kind, secret) for kind, text in told for secret in (API_KEY, S3_SECRET) if secret in text
    ]
    assert hits == []
    assert not [
        kind for kind, text in told if kind in {"logs", "log records"} and ";base64," in text
    ]
