"""Status, verify and clean on outputs that are made object by object."""

import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.caching import batch_key
from prefect_imageqa.tasks.cleaning import find_unused, remove_unused
from prefect_imageqa.tasks.completions import Completions
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.exporting import export
from prefect_imageqa.tasks.ledger import Ledger, RowStatus
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.outputs import Objects, output_status, read_runs
from prefect_imageqa.tasks.records import (
    Answered,
    Batch,
    Kind,
    Problem,
    Prompt,
    QAPair,
    Quarantined,
    Row,
)
from prefect_imageqa.tasks.result_records import RESULT_SERIALIZER
from prefect_imageqa.tasks.storing import open_output, write_batch, write_keys
from prefect_imageqa.tasks.storing import write_manifest as replace_manifest
from prefect_imageqa.tasks.storing import write_run as replace_run
from prefect_imageqa.tasks.verifying import verify

PARSE = "qa_pairs-v1"
BAD = (3, 7)
"""Rows that the server refuses."""

NO_IMAGE = 5
"""A row that is never asked, and has the same key in every configuration."""

ROWS = 12


def key(number: int, configuration: str) -> str:
    return f"{number if number == NO_IMAGE else number + 256 * ord(configuration):032x}"


def outcome(number: int, configuration: str) -> Answered | Quarantined:
    name = key(number, configuration)
    if number == NO_IMAGE:
        return Quarantined(name, number, f"d:{number}", Kind.NO_IMAGE, "no image")
    if number in BAD:
        return Quarantined(name, number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400", 400, 1)
    pairs = tuple(QAPair(f"Q{number}.{pair}", "A") for pair in range(1 + number % 2))
    return Answered(name, f"raw {number} \ud83d", pairs, "m", 100, 20, 0.25)


def completions_of(rows: Sequence[Answered | Quarantined]) -> tuple[str, bytes]:
    """A batch's key, and its completions as Prefect keeps them."""
    keys = [row.key for row in rows]
    batch = Batch(
        1,
        batch_key(keys, [0] * len(keys)),
        tuple(Prompt(number, name, f"d:{number}") for number, name in enumerate(keys)),
        (0,) * len(keys),
        replies={
            row.key: Completion(row.text, "stop", 1, 1, 0.1, "m", 1)
            if isinstance(row, Answered)
            else Problem(row.kind, row.message, row.status, row.attempts)
            for row in rows
        },
    )
    metadata = {"serializer": RESULT_SERIALIZER.model_dump(mode="json")}
    result = json.dumps(Completions.of(batch).dump())
    return batch.key, json.dumps({"metadata": metadata, "result": result}).encode()


def record(configuration: str, seconds_ago: float, state: str, **changed: Any) -> dict[str, Any]:
    then = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds")
    return {
        "run": f"run-{configuration}-{state}",
        "state": state,
        "dataset": "d.json",
        "model": "m",
        "parser": PARSE,
        "configuration": configuration,
        "keys": f"{configuration}/d",
        "started": then,
        "updated": then,
        "progress": {"total": ROWS, "reused": 1, "ok": 2, "quarantined": 3},
    } | changed


def write_record(store: ObjectStore, *told: Any, **changed: Any) -> dict[str, Any]:
    content = record(*told, **changed)
    replace_run(store, content["run"], content)
    return content


def complete(store: ObjectStore, configuration: str, seconds_ago: float = 300) -> None:
    """What a completed run leaves: batches of four rows."""
    open_output(store)
    outcomes = [outcome(number, configuration) for number in range(ROWS)]
    for start in range(0, ROWS, 4):
        rows = outcomes[start : start + 4]
        name, data = completions_of(rows)
        store.write(f"completions/{name}", data)
        write_batch(store, PARSE, name, rows)
    keys = [row.key for row in outcomes]
    dataset = (Row(number, {"image": f"{number}.png"}, f"d:{number}") for number in range(ROWS))
    counts = export(store, Ledger.read(store, PARSE), dataset, keys, "output", "image")
    write_keys(store, f"{configuration}/d", keys)
    summary = {**vars(counts), "reasons": dict(counts.reasons)}
    told = write_record(store, configuration, seconds_ago, "completed", summary=summary)
    replace_manifest(store, told)


def test_status_of_nothing(store: ObjectStore) -> None:
    assert output_status(store) is None
    open_output(store)
    status = output_status(store)
    assert status is not None
    assert (status.last, status.unfinished, status.stored) == (None, [], {})


def test_status_tells_runs_and_what_is_stored(store: ObjectStore) -> None:
    complete(store, "a")
    name, data = completions_of([outcome(1, "b")])
    store.write(f"completions/{name}", data)
    write_record(store, "b", 5, "running", parser="other-1234")
    status = output_status(store)
    assert status is not None
    assert status.last is not None
    assert status.last.summary is not None
    assert status.last.summary.reasons == {"bad_request": 2, "no_image": 1}
    assert [(run.configuration, run.is_going) for run in status.unfinished] == [("b", True)]
    counts = status.stored[PARSE]
    assert (counts.answered, counts.quarantined.total()) == (9, 3)
    assert status.stored["other-1234"].answered == 0
    assert status.unparsed == 1
    assert {kind: objects.count for kind, objects in status.objects.items()} == {
        "completions": 4,
        "parts": 3,
        "quarantine": 2,
        "keys": 1,
        "runs": 2,
        "exports": 4,
        "other": 1,
    }
    assert status.objects["keys"] == Objects(1, 16 * ROWS)


@pytest.mark.parametrize(
    ("state", "seconds_ago", "going"),
    [
        ("running", 5, True),
        ("running", 65, False),
        ("failed", 5, False),
        ("interrupted", 5, False),
    ],
)
def test_status_of_a_run_that_is_not_completed(
    state: str, seconds_ago: float, going: bool, local: ObjectStore
) -> None:
    open_output(local)
    write_record(local, "a", seconds_ago, state)
    status = output_status(local)
    assert status is not None
    assert [run.is_going for run in status.unfinished] == [going]
    complete(local, "a", seconds_ago=1)
    status = output_status(local)
    assert status is not None
    assert [run.is_going for run in status.unfinished] == ([True] if going else [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"state": "running"}',
        json.dumps(record("a", 1, "completed")).encode(),
        json.dumps(record("a", 1, "running", updated="2026-11-23")).encode(),
    ],
    ids=["empty", "no object", "fields missing", "no summary", "no time"],
)
def test_a_record_that_is_none_is_told_in_one_line(content: bytes, local: ObjectStore) -> None:
    open_output(local)
    local.write("runs/x.json", content)
    with pytest.raises(StoreError, match=r"runs/x\.json is not the record of a run.*delete it"):
        output_status(local)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000], ids=["empty", "list", "deep"])
@pytest.mark.parametrize("look", [output_status, verify, find_unused])
def test_a_manifest_that_is_none_is_told_in_one_line(
    look: Callable[[ObjectStore], object], content: bytes, local: ObjectStore
) -> None:
    local.write("manifest.json", content)
    with pytest.raises(StoreError, match=r"manifest\.json is not a manifest of this program$"):
        look(local)


def test_all_is_well(store: ObjectStore) -> None:
    complete(store, "a")
    verified = verify(store)
    assert verified.faults == []
    assert (verified.rows, verified.objects) == (ROWS, 3 + 3 + 2 + 1 + 1 + 4 + 1)


def test_what_later_runs_add_is_no_fault(local: ObjectStore) -> None:
    """Another configuration's rows, an answer to a quarantined row, a newer answer."""
    complete(local, "a")
    later = [
        Answered(key(3, "a"), "at last", (QAPair("Q", "A"),), "m", 1, 1, 0.1),
        Answered(key(1, "a"), "newer", (QAPair("Q", "A"),), "m", 1, 1, 0.1),
        outcome(1, "b"),
    ]
    write_batch(local, PARSE, key(1, "x"), later, time.time() + 60)
    write_record(local, "a", 5, "running")
    verified = verify(local)
    assert verified.faults == []
    assert verified.is_going


def only(store: ObjectStore, folder: str, place: int = 0) -> Path:
    """A file of an output."""
    named = Path(store.uri_of(folder))
    return named if named.is_file() else Path(store.uri_of(store.list(folder)[place]))


def edit(name: str, old: str, new: str) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def drop(folder: str) -> Callable[[ObjectStore], None]:
    return lambda store: only(store, folder).unlink()


def cut(folder: str) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = only(store, folder)
        path.write_bytes(path.read_bytes()[:-9])

    return change


def drop_line(name: str, number: int) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))

    return change


def damage_pages(store: ObjectStore) -> None:
    """Change the answers of a part; its keys and its end stay as they are."""
    path = only(store, f"parts/{PARSE}")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)


def rewrite_pairs(
    change: Callable[[list[dict[str, Any]]], object],
) -> Callable[[ObjectStore], None]:
    def apply(store: ObjectStore) -> None:
        path = Path(store.uri_of("pairs.parquet"))
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)

    return apply


FAULTS: dict[str, tuple[Callable[[ObjectStore], object], str]] = {
    "part gone": (drop(f"parts/{PARSE}"), r"parts/\S+: neither an answer .* \(row \d+ and \d more"),
    "part cut": (cut(f"parts/{PARSE}"), r"parts/\S+ is damaged .*: delete it"),
    "part's answers": (damage_pages, r"parts/\S+ is damaged .*: delete it"),
    "quarantine gone": (drop(f"quarantine/{PARSE}"), r"neither an answer nor a reason"),
    "quarantine cut": (cut(f"quarantine/{PARSE}"), r"quarantine/\S+ is damaged"),
    "completions cut": (cut("completions"), r"completions/\S+: .*damaged or cut off; delete it"),
    "completions changed": (
        lambda store: only(store, "completions", 1).write_bytes(
            only(store, "completions").read_bytes()
        ),
        r"completions/\S+: stored replies are those of another batch; delete it",
    ),
    "run record": (cut("runs"), r"runs/\S+ is not the record of a run"),
    "keys cut": (cut("keys"), r"keys/a/d: damaged; delete it and run again"),
    "keys gone": (drop("keys"), r"keys/a/d: missing; run the same command again"),
    "keys short": (
        lambda store: write_keys(store, "a/d", [key(number, "a") for number in range(11)]),
        r"keys/a/d: 11 rows, and the manifest counts 12",
    ),
    "manifest's sum": (edit("manifest.json", '"rows": 12', '"rows": 13'), r"13 rows are not the"),
    "manifest no run": (edit("manifest.json", '"run"', '"rum"'), r"manifest.json is not the rec"),
    "answers gone": (drop("qa.jsonl"), r"qa.jsonl: missing; run the same"),
    "answers cut": (cut("qa.jsonl"), r"qa.jsonl: not a record \(line 9\); run the same"),
    "an answer lost": (drop_line("qa.jsonl", 2), r"qa.jsonl: 8 records, and the manifest counts 9"),
    "an answer no text": (edit("qa.jsonl", '"raw 1 ?"', "null"), r"without the output column \(li"),
    "an answer no record": (edit("qa.jsonl", '{"image"', '["image"'), r"not a record \(line 1\)"),
    "array differs": (
        edit("qa.json", "raw 1", "raw 7"),
        r"qa.json: other records than in qa.jsonl",
    ),
    "array cut": (cut("qa.json"), r"qa.json: other records than in qa.jsonl"),
    "a reason lost": (
        drop_line("quarantine.jsonl", 1),
        r"quarantine.jsonl: a quarantined row is missing \(row 5\)",
    ),
    "a reason twice": (
        lambda store: store.write("quarantine.jsonl", 2 * store.read("quarantine.jsonl")),
        r"quarantine.jsonl: a row out of order, or twice \(line 4 and 2 more\)",
    ),
    "another row": (
        edit("quarantine.jsonl", key(7, "a"), key(8, "a")),
        r"quarantine.jsonl: not the row that the dataset has there \(line 3\)",
    ),
    "no reason": (
        edit("quarantine.jsonl", '"row"', '"raw"'),
        r"not the record of a row \(line 1\)",
    ),
    "pairs cut": (cut("pairs.parquet"), r"pairs.parquet: damaged; run the same"),
    "a pair lost": (rewrite_pairs(lambda rows: rows.pop(1)), r"missing or twice \(row 1\)"),
    "pairs lost": (rewrite_pairs(lambda rows: rows.clear()), r"0 pairs, and the manifest counts"),
    "pairs shuffled": (rewrite_pairs(lambda rows: rows.reverse()), r"pair out of order"),
    "a pair's key": (
        rewrite_pairs(lambda rows: rows[0].update(key=key(9, "z"))),
        r"pairs.parquet: a pair of another row than the dataset has there \(row 0\)",
    ),
    "a pair's row": (
        rewrite_pairs(lambda rows: rows[-1].update(row=99)),
        r"pairs.parquet: a pair of a row that the dataset does not have \(row 99\)",
    ),
    "a failure's pair": (
        rewrite_pairs(lambda rows: rows[3].update(row=3)),
        r"pairs.parquet: a pair of a row that is in quarantine.jsonl \(row 3\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_with_its_object(fault: str, local: ObjectStore) -> None:
    complete(local, "a")
    spoil, told = FAULTS[fault]
    spoil(local)
    faults = "\n".join(verify(local).faults)
    assert faults.startswith(local.uri)
    assert re.search(told, faults), faults


def test_verify_says_that_no_run_was_completed(local: ObjectStore) -> None:
    with pytest.raises(StoreError, match="there is no output here"):
        verify(local)
    open_output(local)
    assert verify(local).faults == [
        f"{local.uri}/manifest.json: no run has been completed yet; run the same command again"
    ]


def stored_of(store: ObjectStore, configuration: str) -> set[str]:
    """Names of the objects that hold rows of a configuration."""
    batches = {
        completions_of([outcome(number, configuration) for number in range(start, start + 4)])[0]
        for start in range(0, ROWS, 4)
    }
    own = {name for name in store.list() if any(batch in name for batch in batches)}
    return own | set(store.list(f"keys/{configuration}"))


def test_clean_keeps_the_newest(store: ObjectStore) -> None:
    complete(store, "a", 300)
    complete(store, "b", 200)
    exports = {name: store.read(name) for name in store.list() if "/" not in name}
    of_a, of_b, runs = stored_of(store, "a"), stored_of(store, "b"), store.list("runs")
    unused = find_unused(store)
    # The row without an image is of both: what is known of it stays.
    shared = {name for name in of_a if name.startswith("quarantine/")}
    assert len(of_a) == 3 + 3 + 2 + 1
    assert of_a - set(unused.objects) < shared
    assert not of_b & set(unused.objects)
    sizes = store.sizes()
    assert unused.objects == {name: sizes[name] for name in unused.objects}
    remove_unused(store, unused)
    assert of_b <= set(store.list())
    assert store.list("runs") == runs
    assert {name: store.read(name) for name in exports} == exports
    assert verify(store).faults == []
    assert find_unused(store).objects == {}


def test_as_many_are_kept_as_are_wanted(local: ObjectStore) -> None:
    for configuration, seconds_ago in (("a", 300), ("b", 100), ("c", 200)):
        complete(local, configuration, seconds_ago)
    assert find_unused(local, keep=3).objects == {}
    removed = set(find_unused(local, keep=2).objects)
    assert "keys/a/d" in removed
    assert not removed & (stored_of(local, "b") | stored_of(local, "c"))
    remove_unused(local, find_unused(local))
    # Those that were dropped before are not chosen again.
    assert find_unused(local, keep=2).objects == {}


def test_a_dropped_parser_takes_its_parts_along(local: ObjectStore) -> None:
    complete(local, "a")
    write_batch(local, "old-v0", key(1, "x"), [outcome(1, "a"), outcome(3, "a")])
    unused = find_unused(local)
    assert sorted(name.split("/")[0] for name in unused.objects) == ["parts", "quarantine"]
    remove_unused(local, unused)
    assert not (Path(local.uri) / "parts" / "old-v0").exists()


def test_clean_refuses_while_a_run_is_going(local: ObjectStore) -> None:
    complete(local, "a")
    write_record(local, "a", 5, "running")
    for force in (False, True):
        with pytest.raises(StoreError, match=r"a run on d\.json is going on \(last sign of life"):
            find_unused(local, force=force)


@pytest.mark.parametrize(
    ("state", "seconds_ago"),
    [("running", 90), ("failed", 5), ("interrupted", 5)],
    ids=["killed", "failed", "interrupted"],
)
def test_clean_refuses_what_is_not_finished(
    state: str, seconds_ago: float, local: ObjectStore
) -> None:
    complete(local, "a", 200)
    write_record(local, "b", seconds_ago, state)
    name, data = completions_of([outcome(1, "b")])
    local.write(f"completions/{name}", data)
    with pytest.raises(StoreError, match="did not complete; finish it first with the same command"):
        find_unused(local)
    unused = find_unused(local, force=True)
    assert list(unused.objects) == [f"completions/{name}"]
    before = {run.run: run for run in read_runs(local)}
    remove_unused(local, unused)
    assert find_unused(local).objects == {}  # nothing is left to be forced
    after = {run.run: run for run in read_runs(local)}
    [dropped] = [run for run in after if after[run] != before[run]]
    assert after[dropped].model_copy(update={"dropped": False}) == before[dropped]


def test_a_run_that_is_completed_later_keeps_its_rows(local: ObjectStore) -> None:
    complete(local, "a", 200)
    write_record(local, "b", 90, "failed")
    name, data = completions_of([outcome(1, "b")])
    local.write(f"completions/{name}", data)
    complete(local, "b", 1)
    assert find_unused(local, keep=2).objects == {}


def test_another_dataset_does_not_finish_a_run(local: ObjectStore) -> None:
    """It has the same configuration, and other rows."""
    write_record(local, "a", 300, "failed", keys="a/other", dataset="other.json")
    complete(local, "a", 200)
    with pytest.raises(StoreError, match=r"the run on other\.json .* did not complete"):
        find_unused(local)


def test_nothing_is_removed_where_no_run_was_completed(local: ObjectStore) -> None:
    open_output(local)
    write_record(local, "a", 90, "running")
    with pytest.raises(StoreError, match="no run has been completed"):
        find_unused(local, force=True)


def test_a_run_that_begins_meanwhile_stops_the_removal(local: ObjectStore) -> None:
    complete(local, "a", 300)
    complete(local, "b", 200)
    unused = find_unused(local)
    write_record(local, "a", 0, "running")
    before = local.list()
    with pytest.raises(StoreError, match="is going on"):
        remove_unused(local, unused)
    assert local.list() == before


def test_damaged_completions_are_left(local: ObjectStore) -> None:
    complete(local, "a")
    local.write("completions/odd", b"?")
    unused = find_unused(local)
    assert (unused.objects, unused.unreadable) == ({}, ["completions/odd"])


@pytest.mark.parametrize("removals", range(9))
def test_a_clean_that_is_killed_leaves_nothing_wrong(
    removals: int, local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row of the dropped configuration counts as failed for want of its answer."""
    complete(local, "a", 300)
    retried = Answered(key(3, "a"), "at last", (QAPair("Q", "A"),), "m", 1, 1, 0.1)
    write_batch(local, PARSE, key(1, "x"), [retried])
    complete(local, "b", 200)
    left = removals
    original = ObjectStore.remove

    def remove(store: ObjectStore, path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        original(store, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "remove", remove)
        patched.setattr("prefect_imageqa.tasks.cleaning.READERS", 1)
        with pytest.raises(KeyboardInterrupt):
            remove_unused(local, find_unused(local))
    status = Ledger.read(local, PARSE).status(key(3, "a"))
    assert status in (RowStatus.ANSWERED, RowStatus.PENDING)
    assert verify(local).faults == []
    remove_unused(local, find_unused(local))
    assert find_unused(local).objects == {}
    assert not [name for name in local.list("keys") if "/a/" in name]
