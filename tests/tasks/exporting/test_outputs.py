"""Status, verify and clean on outputs that are made object by object."""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.exporting.clean import find_unused, remove_unused
from prefect_imageqa.tasks.exporting.export import QA_JSON, export_rows
from prefect_imageqa.tasks.exporting.status import Objects, output_status
from prefect_imageqa.tasks.exporting.verify import verify
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.prefect_results import RESULT_SERIALIZER
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.keys import batch_key
from prefect_imageqa.tasks.records import (
    Answered,
    Batch,
    FinishedRow,
    Kind,
    Problem,
    Prompt,
    Quarantined,
    Row,
)
from prefect_imageqa.tasks.runs.records import RunRecord, complete_run, read_runs
from prefect_imageqa.tasks.storing.layout import PassFolder, open_output
from prefect_imageqa.tasks.storing.ledger import Ledger, RowStatus
from prefect_imageqa.tasks.storing.parts import PART_SCHEMA, part_writer
from prefect_imageqa.tasks.storing.row_keys import write_keys
from prefect_imageqa.tasks.storing.store import write_part

PARSE = "qa_pairs-v1"
FOLDER = PassFolder()
PARTS = FOLDER.parts(PARSE)
BAD = (3, 7)
"""Rows that the server refuses."""

NO_IMAGE = 5
"""A row that is never asked, and has the same key in every configuration."""

ROWS = 12

WriteRecord = Callable[..., RunRecord]
Complete = Callable[..., None]


def key(number: int, configuration: str) -> str:
    return f"{number if number == NO_IMAGE else number + 256 * ord(configuration):032x}"


def outcome(number: int, configuration: str) -> FinishedRow:
    name = key(number, configuration)
    if number == NO_IMAGE:
        return Quarantined(name, number, f"d:{number}", Kind.NO_IMAGE, "no image")
    if number in BAD:
        return Quarantined(name, number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400", 400, 1)
    pairs = [{"question": f"Q{number}.{n}", "answer": "A"} for n in range(1 + number % 2)]
    return Answered(name, f"raw {number} \ud83d", pairs, "m", 100, 20, 0.25)


def answer(number: int, text: str) -> Answered:
    """A later answer to a row of configuration "a"."""
    pairs = [{"question": "Q", "answer": "A"}]
    return Answered(key(number, "a"), text, pairs, "m", 1, 1, 0.1)


def completions_of(rows: Sequence[FinishedRow]) -> tuple[str, bytes]:
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


def plant_completions(store: ObjectStore, rows: Sequence[FinishedRow]) -> str:
    batch, data = completions_of(rows)
    store.write(f"{FOLDER.completions}/{batch}", data)
    return batch


@pytest.fixture
def write_record(record_of: WriteRecord) -> WriteRecord:
    """Writes the record of a run of a configuration, by its state and last heartbeat."""

    def write(
        store: ObjectStore, configuration: str, ago: float, state: str, **changed: Any
    ) -> RunRecord:
        names = {"run": f"run-{configuration}-{state}", "keys": f"{FOLDER.keys}/{configuration}/d"}
        fields = {"configuration": configuration, "state": state, **names, **changed}
        run = record_of(ago=ago, **fields)
        run.write(store)
        return run

    return write


@pytest.fixture
def complete(write_record: WriteRecord) -> Complete:
    """Makes what a completed run leaves: batches of four rows."""

    def make(
        store: ObjectStore, configuration: str, ago: float = 300, json_array: bool = True
    ) -> None:
        open_output(store)
        outcomes = [outcome(number, configuration) for number in range(ROWS)]
        for start in range(0, ROWS, 4):
            rows = outcomes[start : start + 4]
            write_part(store, PARTS, plant_completions(store, rows), rows)
        keys = [row.key for row in outcomes]
        dataset = (Row(number, {"image": f"{number}.png"}, f"d:{number}") for number in range(ROWS))
        ledger = Ledger.read(store, PARTS)
        counts = export_rows.fn(store, ledger, dataset, keys, Columns(), json_array=json_array)
        write_keys(store, f"{FOLDER.keys}/{configuration}/d", keys)
        complete_run(store, write_record(store, configuration, ago, "completed", counts=counts))

    return make


def test_status_of_nothing(store: ObjectStore) -> None:
    assert output_status(store) is None
    open_output(store)
    status = output_status(store)
    assert status is not None
    assert (status.last, status.unfinished, status.stored) == (None, [], {})


def test_status_tells_runs_and_what_is_stored(
    store: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(store, "a")
    plant_completions(store, [outcome(1, "b")])
    write_record(store, "b", 5, "running", parser="other-1234")
    status = output_status(store)
    assert status is not None
    assert status.last is not None
    assert status.last.counts.reasons == {"bad_request": 2, "no_image": 1}
    assert [(run.configuration, run.is_live) for run in status.unfinished] == [("b", True)]
    counts = status.stored[PARSE]
    assert (counts.answered, counts.quarantined) == (9, 3)
    assert status.stored["other-1234"].answered == 0
    assert status.unparsed == 1
    assert {kind: objects.count for kind, objects in status.objects.items()} == {
        "completions": 4,
        "parts": 3,
        "keys": 1,
        "runs": 2,
        "exports": 4,
        "other": 1,
    }
    assert status.objects["keys"] == Objects(1, 16 * ROWS)


@pytest.mark.parametrize(("ago", "live"), [(5, True), (65, False)])
def test_status_of_a_run_that_is_not_completed(
    ago: float, live: bool, local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    open_output(local)
    write_record(local, "a", ago, "running")
    status = output_status(local)
    assert status is not None
    assert [run.is_live for run in status.unfinished] == [live]
    complete(local, "a", ago=1)
    status = output_status(local)
    assert status is not None
    assert [run.is_live for run in status.unfinished] == ([True] if live else [])


def test_a_record_that_is_none_is_told_in_one_line(local: ObjectStore) -> None:
    open_output(local)
    local.write("runs/x.json", b'{"state": "running"}')
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


def test_all_is_well(store: ObjectStore, complete: Complete) -> None:
    complete(store, "a")
    verified = verify(store)
    assert verified.faults == []
    assert (verified.rows, verified.objects) == (ROWS, 3 + 3 + 1 + 1 + 4 + 1)


def test_an_array_that_was_not_asked_for_is_not_missed(
    local: ObjectStore, complete: Complete
) -> None:
    complete(local, "a", json_array=False)
    assert not local.exists(QA_JSON)
    assert verify(local).faults == []


def test_what_later_runs_add_is_no_fault(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    """Another configuration's rows, an answer to a quarantined row, a newer answer."""
    complete(local, "a")
    later = [answer(3, "at last"), answer(1, "newer"), outcome(1, "b")]
    write_part(local, PARTS, key(1, "x"), later, time.time() + 60)
    write_record(local, "a", 5, "running")
    verified = verify(local)
    assert verified.faults == []
    assert verified.is_live


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
    """Change the texts of a part; its keys and its end stay as they are."""
    path = only(store, PARTS)
    column = PART_SCHEMA.get_field_index("text")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)


def plant(**changed: Any) -> Callable[[ObjectStore], None]:
    """Change an answered row of a part, which stays readable as Parquet."""

    def change(store: ObjectStore) -> None:
        path = only(store, PARTS)
        rows = pq.read_table(path).to_pylist()
        next(row for row in rows if row["status"] == "ok").update(changed)
        with part_writer(path) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA))

    return change


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
    "part gone": (drop(PARTS), r"parts/\S+: neither an answer .* \(row \d+ and 3 more"),
    "part cut": (cut(PARTS), r"parts/\S+ is corrupted .*: delete it"),
    "part's texts": (damage_pages, r"parts/\S+ is corrupted .*: delete it"),
    "unknown status": (plant(status="answered"), r"parts/\S+ is corrupted .*: delete it"),
    "an answer without text": (plant(text=None), r"parts/\S+ is corrupted .*: delete it"),
    "parsed no JSON": (plant(parsed="{"), r"parts/\S+ is corrupted .*: delete it"),
    "parsed no pairs": (plant(parsed="[5]"), r"parts/\S+ is corrupted .*: delete it"),
    "half a character": (
        plant(parsed=r'[{"question": "\ud83d", "answer": "A"}]'),
        r"parts/\S+ is corrupted .*: delete it",
    ),
    "completions cut": (
        cut(FOLDER.completions),
        r"completions/\S+: .*corrupted or cut off; delete it",
    ),
    "completions changed": (
        lambda store: only(store, FOLDER.completions, 1).write_bytes(
            only(store, FOLDER.completions).read_bytes()
        ),
        r"completions/\S+: stored replies are those of another batch; delete it",
    ),
    "run record": (cut("runs"), r"runs/\S+ is not the record of a run"),
    "keys cut": (cut(FOLDER.keys), r"keys/a/d: corrupted; delete it and run again"),
    "keys gone": (drop(FOLDER.keys), r"keys/a/d: missing; run the same command again"),
    "keys short": (
        lambda store: write_keys(
            store, f"{FOLDER.keys}/a/d", [key(number, "a") for number in range(11)]
        ),
        r"keys/a/d: 11 rows, and the manifest counts 12",
    ),
    "manifest's sum": (edit("manifest.json", '"rows": 12', '"rows": 13'), r"13 rows are not 9 ok"),
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
    "pairs cut": (cut("pairs.parquet"), r"pairs.parquet: corrupted; run the same"),
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
def test_each_fault_is_told_with_its_object(
    fault: str, local: ObjectStore, complete: Complete
) -> None:
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
    return own | set(store.list(f"{FOLDER.keys}/{configuration}"))


def test_clean_keeps_the_newest(store: ObjectStore, complete: Complete) -> None:
    complete(store, "a", 300)
    complete(store, "b", 200)
    exports = {name: store.read(name) for name in store.list() if "/" not in name}
    of_a, of_b, runs = stored_of(store, "a"), stored_of(store, "b"), store.list("runs")
    unused = find_unused(store)
    assert len(of_a) == 3 + 3 + 1
    # The row without an image is of both: what is known of it stays.
    [shared] = completions_of([outcome(number, "a") for number in range(4, 8)])[:1]
    assert all(name.startswith(f"{PARTS}/{shared}-") for name in of_a - set(unused.objects))
    assert not of_b & set(unused.objects)
    sizes = store.sizes()
    assert unused.objects == {name: sizes[name] for name in unused.objects}
    remove_unused(store, unused)
    assert of_b <= set(store.list())
    assert store.list("runs") == runs
    assert {name: store.read(name) for name in exports} == exports
    assert verify(store).faults == []
    assert find_unused(store).objects == {}


def test_as_many_are_kept_as_are_wanted(local: ObjectStore, complete: Complete) -> None:
    for configuration, ago in (("a", 300), ("b", 100), ("c", 200)):
        complete(local, configuration, ago)
    assert find_unused(local, keep=3).objects == {}
    removed = set(find_unused(local, keep=2).objects)
    assert f"{FOLDER.keys}/a/d" in removed
    assert not removed & (stored_of(local, "b") | stored_of(local, "c"))
    remove_unused(local, find_unused(local))
    # Those that were dropped before are not chosen again.
    assert find_unused(local, keep=2).objects == {}


def test_a_dropped_parser_takes_its_parts_along(local: ObjectStore, complete: Complete) -> None:
    complete(local, "a")
    old = FOLDER.parts("old-v0")
    part = write_part(local, old, key(1, "x"), [outcome(1, "a"), outcome(3, "a")])
    assert list(find_unused(local).objects) == [part]
    local.write(part, b"corrupted")
    unused = find_unused(local)
    assert list(unused.objects) == [part]
    remove_unused(local, unused)
    assert not Path(local.uri_of(old)).exists()


def test_clean_refuses_while_a_run_is_going(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(local, "a")
    write_record(local, "a", 5, "running")
    for force in (False, True):
        with pytest.raises(StoreError, match=r"a run on d\.json is going on \(last heartbeat"):
            find_unused(local, force=force)


@pytest.mark.parametrize(
    ("state", "ago"),
    [("running", 90), ("failed", 5), ("interrupted", 5)],
    ids=["killed", "failed", "interrupted"],
)
def test_clean_refuses_what_is_not_finished(
    state: str, ago: float, local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(local, "a", 200)
    dropped = write_record(local, "b", ago, state).run
    batch = plant_completions(local, [outcome(1, "b")])
    with pytest.raises(StoreError, match="did not complete; finish it first with the same command"):
        find_unused(local)
    unused = find_unused(local, force=True)
    assert list(unused.objects) == [f"{FOLDER.completions}/{batch}"]
    before = {run.run: run for run in read_runs(local)}
    remove_unused(local, unused)
    assert find_unused(local).objects == {}  # nothing is left to be forced
    before[dropped] = before[dropped].model_copy(update={"dropped": True})
    assert {run.run: run for run in read_runs(local)} == before


def test_a_run_that_is_completed_later_keeps_its_rows(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(local, "a", 200)
    write_record(local, "b", 90, "failed")
    plant_completions(local, [outcome(1, "b")])
    complete(local, "b", 1)
    assert find_unused(local, keep=2).objects == {}


def test_another_dataset_does_not_finish_a_run(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    """It has the same configuration, and other rows."""
    write_record(local, "a", 300, "failed", keys=f"{FOLDER.keys}/a/other", dataset="other.json")
    complete(local, "a", 200)
    with pytest.raises(StoreError, match=r"the run on other\.json .* did not complete"):
        find_unused(local)


def test_nothing_is_removed_where_no_run_was_completed(
    local: ObjectStore, write_record: WriteRecord
) -> None:
    open_output(local)
    write_record(local, "a", 90, "running")
    with pytest.raises(StoreError, match="no run has been completed"):
        find_unused(local, force=True)


def test_a_run_that_begins_meanwhile_stops_the_removal(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(local, "a", 300)
    complete(local, "b", 200)
    unused = find_unused(local)
    write_record(local, "a", 0, "running")
    before = local.list()
    with pytest.raises(StoreError, match="is going on"):
        remove_unused(local, unused)
    assert local.list() == before


def test_damaged_completions_are_left(local: ObjectStore, complete: Complete) -> None:
    complete(local, "a")
    local.write(f"{FOLDER.completions}/odd", b"?")
    unused = find_unused(local)
    assert (unused.objects, unused.unreadable) == ({}, [f"{FOLDER.completions}/odd"])


@pytest.mark.parametrize("removals", range(7))
def test_a_clean_that_is_killed_leaves_nothing_wrong(
    removals: int, local: ObjectStore, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row of the dropped configuration counts as failed for want of its answer."""
    complete(local, "a", 300)
    # Its name is the first of all.
    write_part(local, PARTS, key(1, "x"), [answer(3, "at last")], time.time() + 60)
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
        patched.setattr("prefect_imageqa.tasks.exporting.clean.STORE_THREADS", 1)
        with pytest.raises(KeyboardInterrupt):
            remove_unused(local, find_unused(local))
    status = Ledger.read(local, PARTS).status(key(3, "a"))
    assert status in (RowStatus.ANSWERED, RowStatus.PENDING)
    assert verify(local).faults == []
    remove_unused(local, find_unused(local))
    assert find_unused(local).objects == {}
    assert not local.list(f"{FOLDER.keys}/a")
