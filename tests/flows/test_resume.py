"""The same command again: nothing lost, nothing asked twice."""

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
from prefect_imageqa.serving.client.retry_policy import MAX_ATTEMPTS
from prefect_imageqa.serving.types import FailureKind
from prefect_imageqa.tasks.exporting.clean_output import find_unused, remove_unused
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.parsing import parse as parsing


def stored(output: Path, kind: str) -> list[Path]:
    return sorted(path for path in (output / "pairs" / kind).rglob("*") if path.is_file())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def ask(stub: Any, drawn: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs the flow over the twelve drawn images."""

    def run(output: str | Path = tmp_path / "out", **changed: Any) -> Any:
        told: dict[str, Any] = {"endpoint": stub.url, "limits": Limits(batch_size=5)} | changed
        return image_qa(str(drawn / "dataset.json"), str(output), **told)

    return run


def test_completions_without_parts_are_parsed_and_not_asked_again(
    ask: Callable[..., Any], tmp_path: Path
) -> None:
    """What a run leaves that is killed between the two."""
    assert ask().requests == 12
    assert len(stored(tmp_path / "out", "completions")) == 3
    before = (tmp_path / "out" / "qa.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "out" / "pairs" / "parts")
    again = ask(limits=Limits(batch_size=4, max_in_flight=3))
    assert (again.requests, again.ok) == (0, 12)
    assert (tmp_path / "out" / "qa.jsonl").read_bytes() == before


def test_outputs_share_a_cache(ask: Callable[..., Any], tmp_path: Path) -> None:
    shared = Caching(cache=str(tmp_path / "cache"))
    assert ask(tmp_path / "a", caching=shared).requests == 12
    assert not (tmp_path / "a" / "pairs" / "completions").exists()
    other = ask(tmp_path / "b", caching=shared)
    assert (other.requests, other.ok) == (0, 12)
    # Of a cache that others share, a changed parser reads what this output has asked for.
    raw = ask(
        tmp_path / "a",
        caching=shared,
        parsing=Parsing(require_pairs=False),
        limits=Limits(batch_size=7),
    )
    assert (raw.requests, raw.ok) == (0, 12)


def test_a_changed_parser_reads_what_is_stored(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    assert {path.parent.name for path in stored(tmp_path / "out", "parts")} == {"qa_pairs-v1"}
    monkeypatch.setattr(parsing, "PARSER_VERSION", 2)
    newer = ask()
    assert (newer.requests, newer.ok) == (0, 12)
    labels = [path.parent.name for path in stored(tmp_path / "out", "parts")]
    assert (labels.count("qa_pairs-v1"), labels.count("qa_pairs-v2")) == (3, 3)
    raw = ask(parsing=Parsing(require_pairs=False))
    assert (raw.requests, raw.ok) == (0, 12)


def test_a_thousand_rows_are_asked_once_whatever_changes_around_them(
    stub: Any, keyed_stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number}?" for number in range(1000)]
    cache = str(tmp_path / "cache")
    other = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)

    def requests(texts: list[str], output: str = "out", **changed: Any) -> int:
        dataset = write_rows(tmp_path, texts)
        told = {"endpoint": stub.url, "caching": Caching(cache=cache)} | changed
        summary = image_qa(str(dataset), str(tmp_path / output), **told)
        assert (summary.rows, summary.ok) == (len(texts), len(texts))
        return int(summary.requests)

    assert requests(texts) == 1000
    assert requests(texts) == 0
    assert requests(texts, "another") == 0
    texts += [f"{number} new?" for number in range(37)]
    assert requests(texts) == 37
    texts[:0] = [f"{number} on top?" for number in range(5)]
    assert requests(texts) == 5
    assert requests(texts, system_prompt="Be brief.") == 1042
    assert requests(texts) == 0
    assert requests(texts, limits=Limits(batch_size=77, max_in_flight=9), endpoint=other) == 0
    monkeypatch.setattr(parsing, "PARSER_VERSION", 2)
    assert requests(texts, limits=Limits(batch_size=31)) == 0
    assert {path.parent.name for path in stored(tmp_path / "out", "parts")} == {
        "qa_pairs-v1",
        "qa_pairs-v2",
    }


def test_everything_can_be_asked_anew(ask: Callable[..., Any], tmp_path: Path) -> None:
    ask()
    renewed = ask(caching=Caching(refresh=True))
    assert (renewed.requests, renewed.ok, renewed.rows) == (12, 12, 12)
    assert ask(caching=Caching(refresh=True)).requests == 12
    assert ask().requests == 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda record: record[: len(record) // 2], "corrupted or truncated"),
        (lambda _: b"", "corrupted or truncated"),
        (lambda record: record.replace(b"completion", b"complxtion"), "corrupted"),
        (lambda record: record.replace(b'"json"', b'"pickle"'), "written by another serializer"),
    ],
    ids=["cut", "empty", "changed", "pickle"],
)
def test_a_cached_object_that_is_not_ours_is_asked_again(
    spoil: Callable[[bytes], bytes],
    told: str,
    ask: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    ask(caching=Caching(cache=str(cache)))
    spoilt, *_ = (path for path in cache.iterdir())
    rows = len(json.loads(json.loads(spoilt.read_bytes())["result"])["rows"])
    spoilt.write_bytes(spoil(spoilt.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = ask(tmp_path / "other", caching=Caching(cache=str(cache)))
    assert (again.requests, again.ok) == (rows, 12)
    warnings = [record.getMessage() for record in caplog.records if told in record.getMessage()]
    assert len(warnings) == 1
    assert "sent to the model again" in warnings[0]
    assert not any(record.exc_info for record in caplog.records)
    assert ask(tmp_path / "third", caching=Caching(cache=str(cache))).requests == 0


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_planted_record_runs(ask: Callable[..., Any], tmp_path: Path) -> None:
    ask()
    trace = tmp_path / "it-ran"
    for path in stored(tmp_path / "out", "completions"):
        record = json.loads(path.read_bytes())
        record["metadata"]["serializer"] = {"type": "pickle", "picklelib": "pickle"}
        record["result"] = pickle.dumps(Planted(trace)).hex()
        path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "out" / "pairs" / "parts")
    assert ask().requests == 12
    assert not trace.exists()


def test_a_cache_that_cannot_be_read_stops_the_run_before_any_request(
    ask: Callable[..., Any], stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / "x").mkdir(parents=True)
    before = stub.stats()["requests"]

    def read(store: ObjectStore, path: str) -> bytes:
        if store.uri_of(path).startswith(str(cache)):
            raise ImageQAError(f"{store.uri_of(path)}: the S3 server failed; try again later")
        return original(store, path)

    original = ObjectStore.read
    monkeypatch.setattr(ObjectStore, "read", read)
    with pytest.raises(ImageQAError, match="the S3 server failed"):
        ask(caching=Caching(cache=str(cache)))
    assert stub.stats()["requests"] == before


def test_a_result_that_cannot_be_written_fails_the_run(
    ask: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ImageQAError, match=r"a part of the path is a file"):
        ask(caching=Caching(cache=str(tmp_path / "cache")))
    assert not any(record.exc_info for record in caplog.records)
    assert stored(tmp_path / "out", "parts") == []


def write_rows(folder: Path, texts: list[str], image: str = "red.png") -> Path:
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    rows = [{"image": image, "conversation": text} for text in texts]
    dataset = folder / "rows.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataset


def test_failed_rows_in_a_batch_do_not_hide(start_stub: Any, tmp_path: Path) -> None:
    """The next run asks what may pass again, and the rest only when it is told to."""
    stub = start_stub()
    texts = ["fine", "STUB status 500", "STUB finish length", "also fine"]
    dataset = write_rows(tmp_path, texts)

    def ask(**changed: Any) -> Any:
        return image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, **changed)

    assert ask().reasons == {"server_error": 1, "truncated": 1}
    assert stub.stats()["requests"] == 1 + 3 + 1 + 1
    again = ask()
    assert (again.requests, again.retried, again.reused) == (3, 1, 2)
    told = ask(caching=Caching(retry_quarantined=True))
    assert (told.requests, told.retried) == (4, 2)
    seeds = [
        body["seed"]
        for body in stub.stats()["bodies"]
        if "finish length" in json.dumps(body["messages"])
    ]
    assert len(seeds) == len(set(seeds)) == 2
    failed = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [(row["row"], row["kind"]) for row in failed] == [(1, "server_error"), (2, "truncated")]


def test_a_run_that_burns_through_the_dataset_is_stopped(start_stub: Any, tmp_path: Path) -> None:
    stub = start_stub(latency=0.3)
    dataset = write_rows(tmp_path, [f"STUB text no pair {number}" for number in range(1000)])
    output = str(tmp_path / "out")
    with pytest.raises(ImageQAError, match="256 of the last 256 rows sent to the model failed"):
        image_qa(
            str(dataset), output, endpoint=stub.url, limits=Limits(batch_size=64, max_in_flight=64)
        )
    assert stub.stats()["requests"] <= 256 + 3 * 64
    record = json.loads(next((tmp_path / "out" / "runs").iterdir()).read_text())
    assert (record["state"], record["counts"]["quarantined"] >= 256) == ("failed", True)
    assert "max_error_rate" in record["error"]
    told = image_qa(str(dataset), output, endpoint=stub.url, limits=Limits(max_error_rate=1))
    assert told.reasons == {"unparsed": 1000}
    assert stub.stats()["requests"] == 1000


def test_a_row_that_kills_the_server_is_found_and_the_others_are_answered(
    start_stub: Any, tmp_path: Path
) -> None:
    mark = "a-mark-that-kills"
    stub = start_stub("--respawn=0.2", f"--poison={mark}", latency=0.02)
    dataset = write_rows(tmp_path, [f"{number}?" for number in range(60)])
    chunk = PngInfo()
    chunk.add_text("note", mark)
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "poison.png", pnginfo=chunk)
    rows = lines(dataset)
    rows[23]["image"] = "poison.png"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = image_qa(
        str(dataset),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=16, max_in_flight=16),
    )
    assert (summary.ok, summary.reasons) == (59, {"crash": 1})
    failed = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [row["row"] for row in failed] == [23]
    assert "on its own" in failed[0]["message"]
    assert len(lines(tmp_path / "out" / "qa.jsonl")) == 59


def test_a_server_that_is_away_is_not_asked_by_one_batch_after_another(
    start_stub: Any, tmp_path: Path
) -> None:
    stub = start_stub("--respawn=8", latency=0.1, slots=16)
    dataset, output = (
        write_rows(tmp_path, [f"{number}?" for number in range(600)]),
        tmp_path / "out",
    )

    def kill() -> None:
        while len(stored(output, "parts")) < 3:
            time.sleep(0.05)
        os.kill(stub.stats()["pid"], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        summary = image_qa(
            str(dataset),
            str(output),
            endpoint=stub.url,
            limits=Limits(batch_size=16, max_in_flight=16),
        )
        killing.result()
    assert (summary.ok, summary.quarantined) == (600, 0)
    assert 0 < summary.requests - 600 <= 3 * 16 * MAX_ATTEMPTS[FailureKind.CONNECTION]


def test_answers_of_a_batch_that_failed_are_kept(start_stub: Any, tmp_path: Path) -> None:
    stub = start_stub()
    dataset = write_rows(tmp_path, [f"{number}?" for number in range(21)])

    def ask() -> Any:
        return image_qa(
            str(dataset), str(tmp_path / "out"), endpoint=proxy.url, limits=Limits(max_in_flight=1)
        )

    with FaultProxy("127.0.0.1", urlsplit(stub.url).port or 0) as proxy:
        # The first request asks for the models; the key ends after twenty rows.
        proxy.set_rules([Rule("respond", status=401, path="/v1/", first=22)])
        with pytest.raises(ImageQAError, match="refuses to answer"):
            ask()
        assert stub.stats()["requests"] == 20
        proxy.set_rules([])
        assert (ask().requests, stub.stats()["requests"]) == (1, 21)


def test_a_gateway_that_refuses_everything_stops_the_run(
    start_stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list of models is open to all, and its key has ended."""
    stub = start_stub()
    dataset = write_rows(tmp_path, [f"{number}?" for number in range(200)])
    limits = Limits(batch_size=50, max_in_flight=4)
    with FaultProxy("127.0.0.1", urlsplit(stub.url).port or 0) as proxy:
        proxy.set_rules([Rule("respond", status=403, path="/chat/", first=61)])
        with pytest.raises(ImageQAError, match="refuses to answer: HTTP 403"):
            image_qa(str(dataset), str(tmp_path / "out"), endpoint=proxy.url, limits=limits)
        assert stub.stats()["requests"] == 60
        proxy.set_rules([])
        again = image_qa(str(dataset), str(tmp_path / "out"), endpoint=proxy.url, limits=limits)
    assert (again.ok, stub.stats()["requests"]) == (200, 200)


@pytest.mark.parametrize("status", [403, 502, 503])
def test_a_row_that_a_well_server_refuses_is_to_blame(
    status: int, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.client.client._backoff", lambda _: 0.0)
    texts = [f"{number}?" for number in range(20)]
    texts[3:3] = [f"STUB status {status}"]
    dataset = write_rows(tmp_path, texts)
    summary = image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.reasons) == (20, {"server_error": 1})
    [failed] = lines(tmp_path / "out" / "quarantine.jsonl")
    assert (failed["row"], failed["status"]) == (3, status)


def test_rows_that_fail_every_night_keep_no_new_row_from_being_asked(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.client.client._backoff", lambda _: 0.0)
    monkeypatch.setattr("prefect_imageqa.serving.client.client._CRASH_CHECK_DELAY", 0.0)
    texts = [f"{number}?" for number in range(240)]
    texts += [f"STUB status 500 {number}" for number in range(60)]
    random.Random(5).shuffle(texts)

    def ask() -> Any:
        dataset = write_rows(tmp_path, texts)
        limits = Limits(max_error_rate=0.22)
        return image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, limits=limits)

    assert ask().ok == 240
    texts += [f"{number} new?" for number in range(200)]  # 60 of the last 256 fail: 23 %
    again = ask()
    assert (again.ok, again.reasons) == (440, {"server_error": 60})


@pytest.mark.parametrize(
    ("lost", "cache"), [("unwritten", "cache"), ("corrupted", ""), ("corrupted", "cache")]
)
def test_a_batch_whose_part_is_lost_is_parsed_again(
    lost: str, cache: str, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_rows(tmp_path, [*map(str, range(20)), "STUB finish length"])
    caching = Caching(cache=str(tmp_path / cache) if cache else "")

    def ask() -> Any:
        return image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, caching=caching)

    def write(store: ObjectStore, path: str, data: bytes) -> None:
        if path.startswith("pairs/parts/"):
            raise ImageQAError("the disk is full")
        original(store, path, data)

    original = ObjectStore.write
    if lost == "unwritten":
        with monkeypatch.context() as patched:
            patched.setattr(ObjectStore, "write", write)
            with pytest.raises(ImageQAError, match="disk is full"):
                ask()
        assert stored(tmp_path / "out", "parts") == []
    else:
        assert ask().requests == 21
        [part] = stored(tmp_path / "out", "parts")
        part.unlink()  # as the message about a corrupted one says
    again = ask()
    assert (again.requests, again.ok, again.reasons) == (0, 20, {"truncated": 1})


def test_a_changed_parser_that_was_interrupted_goes_on_with_a_shared_cache(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*map(str, range(50))]

    def ask() -> Any:
        return image_qa(
            str(write_rows(tmp_path, texts)),
            str(tmp_path / "out"),
            endpoint=stub.url,
            caching=Caching(cache=str(tmp_path / "cache")),
        )

    assert ask().requests == 50
    texts += map(str, range(50, 80))
    assert ask().requests == 30
    monkeypatch.setattr(parsing, "PARSER_VERSION", 2)
    original, written = ObjectStore.write, []

    def write(store: ObjectStore, path: str, data: bytes) -> None:
        if path.startswith("pairs/parts/"):
            written.append(path)
            if len(written) == 2:
                raise ImageQAError("the disk is full")
        original(store, path, data)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "write", write)
        with pytest.raises(ImageQAError, match="disk is full"):
            ask()
    again = ask()
    assert (again.requests, again.ok) == (0, 80)


def test_cleaning_keeps_the_answers_of_other_tables_and_limits(stub: Any, tmp_path: Path) -> None:
    output, place = str(tmp_path / "out"), ObjectStore(uri=str(tmp_path / "out"))
    first = write_rows(tmp_path, [f"{number}?" for number in range(20)])
    one = pd.DataFrame(lines(first)).assign(image=str(tmp_path / "red.png"))
    other = one.assign(conversation=[f"other {number}?" for number in range(20)])

    def ask(frame: pd.DataFrame, max_rows: int | None = None) -> int:
        return int(image_qa(frame, output, endpoint=stub.url, max_rows=max_rows).requests)

    assert [ask(one), ask(other), ask(one, 5)] == [20, 20, 0]
    unused = find_unused(place)
    assert not unused.objects
    remove_unused(place, unused)
    assert [ask(one), ask(other)] == [0, 0]
