"""Runs whose S3 server is away for a while, or for good."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from prefect_imageqa import ImageQAError, Limits, ObjectStore, image_qa
from prefect_imageqa.flows import output_lease
from prefect_imageqa.flows.output_lease import OutputLease
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.object_store.patience import Patience
from prefect_imageqa.tasks.runs.heartbeat import ACTIVE_RUNS, this_process
from prefect_imageqa.tasks.runs.run_record import read_run

ROWS, BATCH_SIZE, IN_FLIGHT = 64, 8, 4


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_imageqa.tasks.object_store.s3._FIRST_BACKOFF", 0.02)
    monkeypatch.setattr("prefect_imageqa.tasks.object_store.patience.MAX_PAUSE", 0.5)


@pytest.fixture
def behind_proxy(s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The bucket behind the proxy, for everything that a run does on S3; this store is direct."""
    direct = ObjectStore(uri=s3, endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    return direct


@pytest.fixture
def gone(tmp_path: Path) -> Path:
    """A file: from the third batch on, rows are answered when it exists."""
    return tmp_path / "gone"


@pytest.fixture
def rows(write_rows: Callable[[list[str]], str], gone: Path) -> str:
    """A dataset of distinct rows."""
    held = 2 * BATCH_SIZE
    return write_rows(
        [f"STUB until {gone} {row}" if row >= held else f"Row {row}?" for row in range(ROWS)]
    )


def wait_until(reached: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_waits_through_an_outage_while_batches_are_stored(
    start_stub: Any,
    rows: str,
    gone: Path,
    behind_proxy: ObjectStore,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub = start_stub()
    output = behind_proxy.with_uri(f"{behind_proxy.uri}/waits-{tmp_path.name}")

    def go_away() -> None:
        wait_until(lambda: output.list("pairs/parts"))
        with s3_proxy.away():
            gone.touch()
            wait_until(lambda: f"S3 at {s3_proxy.url} does not answer" in caplog.text)
            time.sleep(1)

    outage = threading.Thread(target=go_away)
    outage.start()
    with caplog.at_level(logging.INFO):
        summary = image_qa(
            rows,
            output.uri,
            endpoint=stub.url,
            limits=Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT),
        )
    outage.join()
    assert (summary.ok, summary.quarantined, summary.requests) == (ROWS, 0, ROWS)
    assert stub.stats()["requests"] == ROWS
    assert len(output.read("qa.jsonl").splitlines()) == ROWS
    log = [record.getMessage() for record in caplog.records if s3_proxy.url in record.getMessage()]
    assert log[0].startswith(f"S3 at {s3_proxy.url} does not answer (connection refused)")
    assert log[-1].startswith(f"S3 at {s3_proxy.url} answers again after")
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_run_stops_when_the_store_of_its_images_is_lost_and_resumes(
    start_stub: Any,
    rows: str,
    gone: Path,
    behind_proxy: ObjectStore,
    s3_proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    stub = start_stub()
    images = behind_proxy.with_uri(f"{behind_proxy.uri}/images-{tmp_path.name}")
    records = json.loads(Path(rows).read_text())
    for number, record in enumerate(records):  # each is read when its row is asked
        images.write(f"{number}.png", (Path(rows).parent / "red.png").read_bytes())
        record["image"] = f"{number}.png"
    images.write("rows.json", json.dumps(records).encode())
    output = tmp_path / "out"
    arguments: dict[str, Any] = {
        "dataset": images.uri_of("rows.json"),
        "output": str(output),
        "endpoint": stub.url,
        "limits": Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT, store_wait=1),
    }
    back = threading.Event()

    def go_away() -> None:
        wait_until(lambda: list(output.glob("pairs/parts/*/*.parquet")))
        with s3_proxy.away():
            gone.touch()
            back.wait(120)

    outage = threading.Thread(target=go_away)
    outage.start()
    try:
        with pytest.raises(ImageQAError, match=r"cannot be reached.*waited"):
            image_qa(**arguments)
    finally:
        back.set()
        outage.join()
    asked = stub.stats()["requests"]
    assert 0 < asked < ROWS
    (record,) = output.glob("runs/*.json")
    assert json.loads(record.read_text())["state"] == "failed"
    summary = image_qa(**arguments)
    assert (summary.ok, summary.quarantined) == (ROWS, 0)
    assert stub.stats()["requests"] == ROWS, "a stored reply was asked for again"


@pytest.fixture
def lease_of(
    record_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., OutputLease]]:
    """Makes the lease of a run of this process: `lease_of(store, on_lost)`."""
    monkeypatch.setattr(output_lease, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(output_lease, "HEARTBEAT_TIMEOUT_SECONDS", 0.5)

    def make(store: ObjectStore, on_lost: Callable[[StoreError], None]) -> OutputLease:
        record = record_of(run="own", state="waiting", ago=0, **this_process())
        return OutputLease(store, record, RunProgress(), on_lost)

    yield make
    ACTIVE_RUNS.discard("own")


@pytest.mark.parametrize("other", ["completed", "running"])
def test_a_run_stops_if_another_took_its_output_over_during_an_outage(
    other: str,
    lease_of: Callable[..., OutputLease],
    record_of: Callable[..., Any],
    behind_proxy: ObjectStore,
    s3_proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    direct = behind_proxy.with_uri(f"{behind_proxy.uri}/lease-{tmp_path.name}")
    patience = Patience(60)
    store = ObjectStore(uri=direct.uri).with_patience(patience)
    lost: list[StoreError] = []
    with lease_of(store, lost.append).acquire(wait=False):
        with s3_proxy.away():
            record_of(run="other", state=other, ago=0).write(direct)
            time.sleep(1)
        before = read_run(direct, "runs/own.json").updated
        wait_until(lambda: read_run(direct, "runs/own.json").updated > before)
    if other == "completed":
        assert lost == []
    else:
        assert "another run took it over (other on elsewhere)" in str(lost[0])
