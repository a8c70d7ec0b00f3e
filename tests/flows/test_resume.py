"""Running the same command again: nothing is lost, and no answered row is sent again."""

import json
import logging
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from fault_proxy import FaultProxy, Rule
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from prefect_imageqa import Caching, ImageQAError, Limits, Parsing, VLLMEndpoint, image_qa
from prefect_imageqa.flows.circuit_breaker import WINDOW
from prefect_imageqa.tasks.exporting.clean_output import find_unused, remove_unused
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.parsing import parse as parsing
from prefect_imageqa.tasks.parsing.qa_pairs import PARSER_VERSION

OLD_PARSER, NEW_PARSER = (f"qa_pairs-v{PARSER_VERSION + more}" for more in (0, 1))

WriteRows = Callable[[list[str]], str]
Run = Callable[..., Any]


def stored(output: Path, kind: str) -> list[Path]:
    return sorted(path for path in (output / "pairs" / kind).rglob("*") if path.is_file())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> Run:
    """Runs the flow on the twelve drawn images."""

    def run(output: str | Path = tmp_path / "out", **options: Any) -> Any:
        defaults: dict[str, Any] = {"endpoint": stub.url, "limits": Limits(batch_size=5)}
        return image_qa(str(drawn / "dataset.json"), str(output), **defaults | options)

    return run


def fail_on_parts(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Let writing the parts of batches fail, from the first-th on."""
    write, written = ObjectStore.write, []

    def failing(store: ObjectStore, path: str, data: bytes) -> None:
        if path.startswith("pairs/parts/"):
            written.append(path)
            if len(written) >= first:
                raise ImageQAError("the disk is full")
        write(store, path, data)

    monkeypatch.setattr(ObjectStore, "write", failing)


def test_completions_without_parts_are_parsed_and_not_sent_again(run: Run, tmp_path: Path) -> None:
    """A run leaves these when it is killed between the two writes."""
    assert run().requests == 12
    assert len(stored(tmp_path / "out", "completions")) == 3
    before = (tmp_path / "out" / "qa.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "out" / "pairs" / "parts")
    again = run(limits=Limits(batch_size=4, max_in_flight=3))
    assert (again.requests, again.ok) == (0, 12)
    assert (tmp_path / "out" / "qa.jsonl").read_bytes() == before


def test_outputs_share_a_cache(run: Run, tmp_path: Path) -> None:
    shared = Caching(cache=str(tmp_path / "cache"))
    assert run(tmp_path / "a", caching=shared).requests == 12
    assert not (tmp_path / "a" / "pairs" / "completions").exists()
    other = run(tmp_path / "b", caching=shared)
    assert (other.requests, other.ok) == (0, 12)
    # From a shared cache, a changed parser reads the completions that this output requested.
    raw = run(
        tmp_path / "a",
        caching=shared,
        parsing=Parsing(require_pairs=False),
        limits=Limits(batch_size=7),
    )
    assert (raw.requests, raw.ok) == (0, 12)


def test_a_changed_parser_reads_stored_completions(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    assert {path.parent.name for path in stored(tmp_path / "out", "parts")} == {OLD_PARSER}
    monkeypatch.setattr(parsing, "PARSER_VERSION", PARSER_VERSION + 1)
    newer = run()
    assert (newer.requests, newer.ok) == (0, 12)
    labels = [path.parent.name for path in stored(tmp_path / "out", "parts")]
    assert (labels.count(OLD_PARSER), labels.count(NEW_PARSER)) == (3, 3)
    raw = run(parsing=Parsing(require_pairs=False))
    assert (raw.requests, raw.ok) == (0, 12)


def test_rows_are_sent_once_whatever_changes_around_them(
    stub: Any,
    keyed_stub: Any,
    write_rows: WriteRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"{number}?" for number in range(300)]
    cache = str(tmp_path / "cache")
    other = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)

    def requests(texts: list[str], output: str = "out", **options: Any) -> int:
        defaults = {"endpoint": stub.url, "caching": Caching(cache=cache)}
        summary = image_qa(write_rows(texts), str(tmp_path / output), **defaults | options)
        assert (summary.rows, summary.ok) == (len(texts), len(texts))
        return int(summary.requests)

    assert requests(texts) == 300
    assert requests(texts) == 0
    assert requests(texts, "another") == 0
    texts += [f"{number} new?" for number in range(37)]
    assert requests(texts) == 37
    texts[:0] = [f"{number} on top?" for number in range(5)]
    assert requests(texts) == 5
    assert requests(texts, system_prompt="Be brief.") == 342
    assert requests(texts) == 0
    assert requests(texts, limits=Limits(batch_size=77, max_in_flight=9), endpoint=other) == 0
    monkeypatch.setattr(parsing, "PARSER_VERSION", PARSER_VERSION + 1)
    assert requests(texts, limits=Limits(batch_size=31)) == 0
    assert {path.parent.name for path in stored(tmp_path / "out", "parts")} == {
        OLD_PARSER,
        NEW_PARSER,
    }


def test_refresh_sends_every_row_again(run: Run) -> None:
    run()
    renewed = run(caching=Caching(refresh=True))
    assert (renewed.requests, renewed.ok, renewed.rows) == (12, 12, 12)
    assert run(caching=Caching(refresh=True)).requests == 12
    assert run().requests == 0


def test_rows_of_foreign_and_corrupted_cache_objects_are_sent_again(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, batches = tmp_path / "cache", Limits(batch_size=2)
    run(caching=Caching(cache=str(cache)), limits=batches)
    spoil: list[tuple[Callable[[bytes], bytes], str]] = [
        (lambda record: record[: len(record) // 2], "corrupted or truncated"),
        (lambda _: b"", "corrupted or truncated"),
        (lambda record: record.replace(b"completion", b"complxtion"), "corrupted"),
        (lambda record: record.replace(b'"json"', b'"pickle"'), "written by another serializer"),
    ]
    objects = sorted(cache.iterdir())
    assert len(objects) == 6
    for path, (change, _) in zip(objects, spoil, strict=False):
        path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = run(tmp_path / "other", caching=Caching(cache=str(cache)), limits=batches)
    assert (again.requests, again.ok) == (4 * 2, 12)
    for path, (_, reason) in zip(objects, spoil, strict=False):
        warnings = [
            record.getMessage()
            for record in caplog.records
            if record.name == "prefect.flow_runs"
            and path.name in record.getMessage()
            and reason in record.getMessage()
        ]
        assert len(warnings) == 1
        assert "sent to the model again" in warnings[0]
    assert not any(record.exc_info for record in caplog.records)
    third = run(tmp_path / "third", caching=Caching(cache=str(cache)), limits=batches)
    assert third.requests == 0


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_planted_record_executes_nothing(run: Run, tmp_path: Path) -> None:
    run()
    trace = tmp_path / "it-ran"
    for path in stored(tmp_path / "out", "completions"):
        record = json.loads(path.read_bytes())
        record["metadata"]["serializer"] = {"type": "pickle", "picklelib": "pickle"}
        record["result"] = pickle.dumps(Planted(trace)).hex()
        path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "out" / "pairs" / "parts")
    assert run().requests == 12
    assert not trace.exists()


def test_an_unreadable_cache_stops_the_run_before_any_request(
    run: Run, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "x").mkdir(parents=True)
    before = stub.stats()["requests"]
    read = ObjectStore.read

    def failing(store: ObjectStore, path: str, *limits: int) -> bytes:
        if store.uri_of(path).startswith(str(cache)):
            raise ImageQAError(f"{store.uri_of(path)}: the S3 server failed; try again later")
        return read(store, path, *limits)

    monkeypatch.setattr(ObjectStore, "read", failing)
    with pytest.raises(ImageQAError, match="the S3 server failed"):
        run(caching=Caching(cache=str(cache)))
    assert stub.stats()["requests"] == before


def test_a_result_that_cannot_be_written_fails_the_run(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file in place of a folder")
    with pytest.raises(ImageQAError, match=r"a part of the path is a file"):
        run(caching=Caching(cache=str(tmp_path / "cache")))
    assert not any(record.exc_info for record in caplog.records)
    assert stored(tmp_path / "out", "parts") == []


@pytest.mark.usefixtures("quick_retries")
def test_a_batch_with_failed_rows_is_not_taken_for_finished(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    """The next run retries transient failures; the others only on request."""
    stub = start_stub()
    dataset = write_rows(["fine", "STUB status 500", "STUB finish length", "also fine"])

    def run(**options: Any) -> Any:
        return image_qa(dataset, str(tmp_path / "out"), endpoint=stub.url, **options)

    first = run()
    assert first.reasons == {"server_error": 1, "truncated": 1}
    assert first.requests == 1 + 3 + 1 + 1
    again = run()
    assert (again.requests, again.retried, again.reused) == (3, 1, 2)
    forced = run(caching=Caching(retry_quarantined=True))
    assert (forced.requests, forced.retried) == (4, 2)
    seeds = [
        body["seed"]
        for body in stub.stats()["bodies"]
        if "finish length" in json.dumps(body["messages"])
    ]
    assert len(seeds) == len(set(seeds)) == 2
    failed = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [(row["row"], row["kind"]) for row in failed] == [(1, "server_error"), (2, "truncated")]


def test_a_run_whose_rows_all_fail_is_stopped(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    stub, batches = start_stub(latency=0.2), Limits(batch_size=64, max_in_flight=64)
    dataset = write_rows([f"STUB text no pair {number}" for number in range(1000)])
    output = str(tmp_path / "out")
    with pytest.raises(ImageQAError, match=f"{WINDOW} of the last {WINDOW} rows failed"):
        image_qa(dataset, output, endpoint=stub.url, limits=batches)
    # Batches that were started before it was known are finished. Each row is asked once more.
    assert stub.stats()["requests"] <= 2 * (WINDOW + 8 * 64) < 2 * 1000
    record = json.loads(next((tmp_path / "out" / "runs").iterdir()).read_text())
    assert (record["state"], record["counts"]["quarantined"] >= WINDOW) == ("failed", True)
    assert "max_error_rate" in record["error"]
    with pytest.raises(
        ImageQAError, match="no row is answered; most often: unparsed, 1,000 of 1,000"
    ):
        image_qa(dataset, output, endpoint=stub.url, limits=Limits(max_error_rate=1))
    assert stub.stats()["requests"] == 2 * 1000
    assert len(lines(tmp_path / "out" / "quarantine.jsonl")) == 1000


@pytest.mark.usefixtures("quick_retries")
def test_a_row_that_crashes_the_server_is_found_and_the_others_are_answered(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    mark = "a-mark-that-crashes"
    stub = start_stub("--respawn=0.2", f"--poison={mark}", latency=0.02)
    dataset = Path(write_rows([f"{number}?" for number in range(60)]))
    chunk = PngInfo()
    chunk.add_text("note", mark)
    Image.new("RGB", (32, 32), "blue").save(dataset.with_name("poison.png"), pnginfo=chunk)
    rows = json.loads(dataset.read_text())
    rows[23]["image"] = "poison.png"
    dataset.write_text(json.dumps(rows))
    summary = image_qa(
        str(dataset),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=16, max_in_flight=16),
    )
    assert (summary.ok, summary.reasons) == (59, {"crash": 1})
    [failed] = lines(tmp_path / "out" / "quarantine.jsonl")
    assert failed["row"] == 23
    assert failed["message"].startswith("the server went down while it worked on this row (")
    assert len(lines(tmp_path / "out" / "qa.jsonl")) == 59


def test_no_further_batches_are_started_while_the_server_is_down(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    stub = start_stub("--respawn=3", latency=0.1, slots=16)
    dataset, output = write_rows([f"{number}?" for number in range(400)]), tmp_path / "out"

    def kill() -> None:
        while len(stored(output, "parts")) < 3:
            time.sleep(0.05)
        os.kill(stub.stats()["pid"], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        limits = Limits(batch_size=16, max_in_flight=16)
        summary = image_qa(dataset, str(output), endpoint=stub.url, limits=limits)
        killing.result()
    assert (summary.ok, summary.quarantined) == (400, 0)
    # Those in flight are sent again, and as many find the server gone; the others wait.
    assert 0 < summary.requests - 400 <= 2 * 16


def test_answers_of_a_failed_batch_are_stored(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    stub, dataset = start_stub(), write_rows([f"{number}?" for number in range(21)])
    one_at_a_time = Limits(max_in_flight=1)

    def run() -> Any:
        return image_qa(dataset, str(tmp_path / "out"), endpoint=proxy.url, limits=one_at_a_time)

    with FaultProxy("127.0.0.1", urlsplit(stub.url).port or 0) as proxy:
        # The first request reads the list of models; the key expires after twenty rows.
        proxy.set_rules([Rule("respond", status=401, path="/v1/", first=22)])
        with pytest.raises(ImageQAError, match=r"wants an API key \(HTTP 401\)"):
            run()
        assert stub.stats()["requests"] == 20
        proxy.set_rules([])
        assert (run().requests, stub.stats()["requests"]) == (1, 21)


@pytest.mark.usefixtures("quick_retries")
def test_a_gateway_that_rejects_everything_stops_the_run(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Its list of models is public, and the key has expired."""
    stub, output = start_stub(), str(tmp_path / "out")
    dataset = write_rows([f"{number}?" for number in range(200)])
    limits = Limits(batch_size=50, max_in_flight=4)
    with FaultProxy("127.0.0.1", urlsplit(stub.url).port or 0) as proxy:
        proxy.set_rules([Rule("respond", status=403, path="/chat/", first=61)])
        with pytest.raises(ImageQAError, match="refuses to answer: HTTP 403"):
            image_qa(dataset, output, endpoint=proxy.url, limits=limits)
        assert stub.stats()["requests"] == 60
        proxy.set_rules([])
        again = image_qa(dataset, output, endpoint=proxy.url, limits=limits)
    assert (again.ok, stub.stats()["requests"]) == (200, 200)


@pytest.mark.usefixtures("quick_retries")
def test_rows_that_a_healthy_server_rejects_are_quarantined(
    stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    rejected = {3: 403, 9: 502, 15: 503}
    texts = [f"{number}?" for number in range(20)]
    for row, status in rejected.items():
        texts[row] = f"STUB status {status}"
    summary = image_qa(write_rows(texts), str(tmp_path / "out"), endpoint=stub.url)
    # A 502 is how a gateway reports that the server has closed the connection.
    assert (summary.ok, summary.reasons) == (17, {"server_error": 2, "connection": 1})
    failed = lines(tmp_path / "out" / "quarantine.jsonl")
    assert {row["row"]: row["status"] for row in failed} == rejected


@pytest.mark.usefixtures("quick_retries")
def test_rows_that_fail_every_night_do_not_keep_new_rows_from_being_sent(
    stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    texts = [f"{number}?" for number in range(240)]
    texts += [f"STUB status 500 {number}" for number in range(60)]
    random.Random(5).shuffle(texts)
    limits = Limits(max_error_rate=0.22)

    def run() -> Any:
        output = str(tmp_path / "out")
        return image_qa(write_rows(texts), output, endpoint=stub.url, limits=limits)

    assert run().ok == 240
    texts += [f"{number} new?" for number in range(200)]  # 60 of the last 256 fail: 23 %
    again = run()
    assert (again.ok, again.reasons) == (440, {"server_error": 60})


@pytest.mark.parametrize(
    ("lost", "cache"), [("unwritten", "cache"), ("removed", ""), ("removed", "cache")]
)
def test_a_batch_whose_part_is_lost_is_parsed_again(
    lost: str,
    cache: str,
    stub: Any,
    write_rows: WriteRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = write_rows([*map(str, range(20)), "STUB finish length"])
    caching = Caching(cache=str(tmp_path / cache) if cache else "")

    def run() -> Any:
        return image_qa(dataset, str(tmp_path / "out"), endpoint=stub.url, caching=caching)

    if lost == "unwritten":
        with monkeypatch.context() as patched:
            fail_on_parts(patched, first=1)
            with pytest.raises(ImageQAError, match="disk is full"):
                run()
        assert stored(tmp_path / "out", "parts") == []
    else:
        assert run().requests == 21
        [part] = stored(tmp_path / "out", "parts")
        part.unlink()  # as the message about a corrupted part recommends
    again = run()
    assert (again.requests, again.ok, again.reasons) == (0, 20, {"truncated": 1})


def test_an_interrupted_run_with_a_changed_parser_resumes_from_a_shared_cache(
    stub: Any, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*map(str, range(50))]

    def run() -> Any:
        return image_qa(
            write_rows(texts),
            str(tmp_path / "out"),
            endpoint=stub.url,
            caching=Caching(cache=str(tmp_path / "cache")),
        )

    assert run().requests == 50
    texts += map(str, range(50, 80))
    assert run().requests == 30
    monkeypatch.setattr(parsing, "PARSER_VERSION", PARSER_VERSION + 1)
    with monkeypatch.context() as patched:
        fail_on_parts(patched, first=2)
        with pytest.raises(ImageQAError, match="disk is full"):
            run()
    again = run()
    assert (again.requests, again.ok) == (0, 80)


def test_cleaning_keeps_the_answers_of_other_tables_and_limits(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    output = ObjectStore(uri=str(tmp_path / "out"))
    image = str(drawn / "images" / "000.png")
    texts = [f"{number}?" for number in range(20)]
    one = pd.DataFrame({"image": image, "conversation": texts})
    other = pd.DataFrame({"image": image, "conversation": [f"other {text}" for text in texts]})

    def requests(frame: pd.DataFrame, max_rows: int | None = None) -> int:
        return int(image_qa(frame, output.uri, endpoint=stub.url, max_rows=max_rows).requests)

    assert [requests(one), requests(other), requests(one, 5)] == [20, 20, 0]
    unused = find_unused(output)
    assert not unused.objects
    remove_unused(output, unused)
    assert [requests(one), requests(other)] == [0, 0]
