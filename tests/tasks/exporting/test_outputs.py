"""Status, verification and clean-up of outputs that are written object by object."""

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.exporting.clean_output import find_unused, remove_unused
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.output_status import Objects, output_status
from prefect_imageqa.tasks.exporting.qa_json import QA_JSON
from prefect_imageqa.tasks.exporting.trainers.export_record import (
    ExportRecord,
    SplitCounts,
    export_folder,
)
from prefect_imageqa.tasks.exporting.verify_output import verify
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
from prefect_imageqa.tasks.runs.run_record import RunRecord, complete_run, read_runs
from prefect_imageqa.tasks.storing.layout import PassFolder, open_output
from prefect_imageqa.tasks.storing.ledger import Ledger, RowStatus
from prefect_imageqa.tasks.storing.parts import PART_SCHEMA, part_writer
from prefect_imageqa.tasks.storing.row_keys import write_keys
from prefect_imageqa.tasks.storing.store import write_part

PARSE = "qa_pairs-v1"
FOLDER = PassFolder()
PARTS = FOLDER.parts(PARSE)
BAD = (3, 7)
"""Rows that the server rejects."""

NO_IMAGE = 5
"""A row that is never sent to the model, and has the same key in every configuration."""

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
    """The key of a batch, and its completions as Prefect stores them."""
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
    result = RESULT_SERIALIZER.dumps(Completions.from_batch(batch).encodable()).decode()
    return batch.key, json.dumps({"metadata": metadata, "result": result}).encode()


def plant_completions(store: ObjectStore, rows: Sequence[FinishedRow]) -> str:
    batch, data = completions_of(rows)
    store.write(f"{FOLDER.completions}/{batch}", data)
    return batch


@pytest.fixture(scope="module")
def write_record(record_of: WriteRecord) -> WriteRecord:
    """Writes the record of a run, with its state and the age of its last heartbeat."""

    def write(
        store: ObjectStore, configuration: str, ago: float, state: str, **changed: Any
    ) -> RunRecord:
        names = {"run": f"run-{configuration}-{state}", "keys": f"{FOLDER.keys}/{configuration}/d"}
        fields = {"configuration": configuration, "state": state, **names, **changed}
        run = record_of(ago=ago, **fields)
        run.write(store)
        return run

    return write


@pytest.fixture(scope="module")
def complete(write_record: WriteRecord) -> Complete:
    """Writes the output of a completed run, in batches of four rows."""

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
        counts = export_rows.fn(
            store, ledger.outcomes(keys), dataset, ROWS, Columns(), json_array=json_array
        )
        write_keys(store, f"{FOLDER.keys}/{configuration}/d", keys)
        complete_run(store, write_record(store, configuration, ago, "completed", counts=counts))

    return make


@pytest.fixture(scope="module")
def completed_output(complete: Complete, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `complete(store, "a")` writes; copying it is faster."""
    folder = tmp_path_factory.mktemp("completed") / "out"
    complete(ObjectStore(uri=str(folder)), "a")
    return folder


@pytest.fixture
def completed(completed_output: Path, local: ObjectStore) -> ObjectStore:
    """An output in a folder with a completed run of configuration "a"."""
    shutil.copytree(completed_output, local.uri)
    return local


@pytest.fixture(scope="module")
def twice_completed_output(
    completed_output: Path, complete: Complete, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("completed") / "twice"
    shutil.copytree(completed_output, folder)
    complete(ObjectStore(uri=str(folder)), "b", 200)
    return folder


@pytest.fixture
def completed_twice(twice_completed_output: Path, local: ObjectStore) -> ObjectStore:
    """An output in a folder with completed runs of configuration "a" and then "b"."""
    shutil.copytree(twice_completed_output, local.uri)
    return local


def test_status_of_a_missing_and_of_an_empty_output(store: ObjectStore) -> None:
    assert output_status(store) is None
    open_output(store)
    status = output_status(store)
    assert status is not None
    assert (status.last, status.unfinished, status.stored) == (None, [], {})


def test_status_has_the_runs_and_the_stored_objects(
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
    assert not status.others[PARSE].answered
    assert not status.others[PARSE].quarantined
    assert status.unparsed == 1
    assert {kind: objects.count for kind, objects in status.objects.items()} == {
        "completions": 4,
        "parts": 3,
        "keys": 1,
        "runs": 2,
        "exports": 5,
        "other": 1,
    }
    assert status.objects["keys"] == Objects(1, 16 * ROWS)


def test_status_counts_the_rows_that_are_not_of_the_last_run(completed_twice: ObjectStore) -> None:
    """The row without an image is of both configurations."""
    status = output_status(completed_twice)
    assert status is not None
    stored, others = status.stored[PARSE], status.others[PARSE]
    assert (stored.answered, stored.quarantined) == (18, 5)
    assert (others.answered, others.quarantined) == (9, 2)
    completed_twice.remove(f"{FOLDER.keys}/b/d")
    status = output_status(completed_twice)
    assert status is not None
    assert status.others[PARSE].answered == 18


@pytest.mark.parametrize(("ago", "live"), [(5, True), (65, False)])
def test_status_of_an_unfinished_run(
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


def test_an_invalid_run_record_is_reported_in_one_line(local: ObjectStore) -> None:
    open_output(local)
    local.write("runs/x.json", b'{"state": "running"}')
    with pytest.raises(StoreError, match=r"runs/x\.json is not a run record.*delete it"):
        output_status(local)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000], ids=["empty", "list", "deeply nested"]
)
@pytest.mark.parametrize("command", [output_status, verify, find_unused])
def test_an_invalid_manifest_is_reported_in_one_line(
    command: Callable[[ObjectStore], object], content: bytes, local: ObjectStore
) -> None:
    local.write("manifest.json", content)
    with pytest.raises(StoreError, match=r"manifest\.json is not a prefect-imageqa manifest$"):
        command(local)


def test_a_complete_output_has_no_problems(store: ObjectStore, complete: Complete) -> None:
    complete(store, "a")
    verified = verify(store)
    assert verified.problems == []
    assert (verified.rows, verified.objects) == (ROWS, 3 + 3 + 1 + 1 + 5 + 1)


def test_the_json_array_is_optional(local: ObjectStore, complete: Complete) -> None:
    complete(local, "a", json_array=False)
    assert not local.exists(QA_JSON)
    assert verify(local).problems == []


def test_files_of_an_export_for_training_are_checked(completed: ObjectStore) -> None:
    folder = export_folder(completed, "llava")
    train = SplitCounts(conversations=1, pairs=1, files=("train.json",))
    splits: dict[Any, SplitCounts] = {"train": train}
    ExportRecord(format="llava", state="complete", images="copy", splits=splits).write(folder)
    folder.write("train.json", b"[]")
    assert verify(completed).problems == []
    status = output_status(completed)
    assert status is not None
    assert status.objects["exports"].count == 7
    folder.remove("train.json")
    (line,) = verify(completed).problems
    assert line.endswith("export/llava/train.json: missing; export again")


def test_rows_added_by_later_runs_are_no_problem(
    completed: ObjectStore, write_record: WriteRecord
) -> None:
    """Rows of another configuration, an answer to a quarantined row, a newer answer."""
    later = [answer(3, "at last"), answer(1, "newer"), outcome(1, "b")]
    write_part(completed, PARTS, key(1, "x"), later, time.time() + 60)
    write_record(completed, "a", 5, "running")
    verified = verify(completed)
    assert verified.problems == []
    assert verified.is_live


def file_of(store: ObjectStore, name: str, number: int = 0) -> Path:
    """The file of an object, or a file of a folder of objects."""
    path = Path(store.uri_of(name))
    return path if path.is_file() else Path(store.uri_of(store.list(name)[number]))


def edit(name: str, old: str, new: str) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def delete(name: str) -> Callable[[ObjectStore], None]:
    return lambda store: file_of(store, name).unlink()


def truncate(name: str) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = file_of(store, name)
        path.write_bytes(path.read_bytes()[:-9])

    return change


def delete_line(name: str, number: int) -> Callable[[ObjectStore], None]:
    def change(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))

    return change


def corrupt_texts(store: ObjectStore) -> None:
    """Overwrite the texts in a part, but not its keys and its footer."""
    path = file_of(store, PARTS)
    column = PART_SCHEMA.get_field_index("text")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)


def edit_answer(**changed: Any) -> Callable[[ObjectStore], None]:
    """Change an answered row of a part, which stays readable as Parquet."""

    def change(store: ObjectStore) -> None:
        path = file_of(store, PARTS)
        rows = pq.read_table(path).to_pylist()
        next(row for row in rows if row["status"] == "ok").update(changed)
        with part_writer(path) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA))

    return change


def edit_pairs(
    change: Callable[[list[dict[str, Any]]], object], name: str = "pairs.parquet"
) -> Callable[[ObjectStore], None]:
    def apply(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)

    return apply


def replace_table(
    name: str, change: Callable[[pa.Table], pa.Table]
) -> Callable[[ObjectStore], None]:
    def apply(store: ObjectStore) -> None:
        path = Path(store.uri_of(name))
        pq.write_table(change(pq.read_table(path)), path)

    return apply


PROBLEMS: dict[str, tuple[Callable[[ObjectStore], object], str]] = {
    "part missing": (
        delete(PARTS),
        r"parts/\S+: row neither answered nor quarantined \(row \d+ and 3 more",
    ),
    "part truncated": (truncate(PARTS), r"parts/\S+ is corrupted .*: delete it"),
    "texts of a part corrupted": (corrupt_texts, r"parts/\S+ is corrupted .*: delete it"),
    "unknown status": (edit_answer(status="answered"), r"parts/\S+ is corrupted .*: delete it"),
    "answer without text": (edit_answer(text=None), r"parts/\S+ is corrupted .*: delete it"),
    "parsed not JSON": (edit_answer(parsed="{"), r"parts/\S+ is corrupted .*: delete it"),
    "parsed not pairs": (edit_answer(parsed="[5]"), r"parts/\S+ is corrupted .*: delete it"),
    "lone surrogate": (
        edit_answer(parsed=r'[{"question": "\ud83d", "answer": "A"}]'),
        r"parts/\S+ is corrupted .*: delete it",
    ),
    "completions truncated": (
        truncate(FOLDER.completions),
        r"completions/\S+: .*corrupted or truncated; delete it",
    ),
    "completions of another batch": (
        lambda store: file_of(store, FOLDER.completions, 1).write_bytes(
            file_of(store, FOLDER.completions).read_bytes()
        ),
        r"completions/\S+: the stored replies belong to another batch; delete it",
    ),
    "run record truncated": (truncate("runs"), r"runs/\S+ is not a run record"),
    "keys truncated": (truncate(FOLDER.keys), r"keys/a/d: corrupted; delete it and run again"),
    "keys missing": (delete(FOLDER.keys), r"keys/a/d: missing; run the same command again"),
    "too few keys": (
        lambda store: write_keys(
            store, f"{FOLDER.keys}/a/d", [key(number, "a") for number in range(11)]
        ),
        r"keys/a/d: 11 rows, but the manifest counts 12",
    ),
    "manifest with wrong counts": (
        edit("manifest.json", '"rows": 12', '"rows": 13'),
        r"13 rows are not the sum of 9 ok",
    ),
    "manifest without run": (
        edit("manifest.json", '"run"', '"rum"'),
        r"manifest.json is not a run rec",
    ),
    "qa.jsonl missing": (delete("qa.jsonl"), r"qa.jsonl: missing; run the same"),
    "qa.jsonl truncated": (
        truncate("qa.jsonl"),
        r"qa.jsonl: not a record \(line 9\); run the same",
    ),
    "answer missing": (
        delete_line("qa.jsonl", 2),
        r"qa.jsonl: 8 records, but the manifest counts 9",
    ),
    "answer not a string": (
        edit("qa.jsonl", '"raw 1 ?"', "null"),
        r"without the output column \(li",
    ),
    "line not an object": (edit("qa.jsonl", '{"image"', '["image"'), r"not a record \(line 1\)"),
    "qa.json differs": (
        edit("qa.json", "raw 1", "raw 7"),
        r"qa.json: its records are not those of qa.jsonl",
    ),
    "qa.json truncated": (truncate("qa.json"), r"qa.json: its records are not those of qa.jsonl"),
    "quarantined row missing": (
        delete_line("quarantine.jsonl", 1),
        r"quarantine.jsonl: quarantined row missing \(row 5\)",
    ),
    "quarantined rows duplicated": (
        lambda store: store.write("quarantine.jsonl", 2 * store.read("quarantine.jsonl")),
        r"quarantine.jsonl: row out of order or duplicate \(line 4 and 2 more\)",
    ),
    "key of another row": (
        edit("quarantine.jsonl", key(7, "a"), key(8, "a")),
        r"quarantine.jsonl: row with another key than in the dataset \(line 3\)",
    ),
    "line without row": (
        edit("quarantine.jsonl", '"row"', '"raw"'),
        r"not the record of a row \(line 1\)",
    ),
    "pairs truncated": (truncate("pairs.parquet"), r"pairs.parquet: corrupted; run the same"),
    "pair missing": (edit_pairs(lambda rows: rows.pop(1)), r"missing or duplicate \(row 1\)"),
    "all pairs missing": (
        edit_pairs(lambda rows: rows.clear()),
        r"0 pairs, but the manifest counts",
    ),
    "pairs out of order": (edit_pairs(lambda rows: rows.reverse()), r"pair out of order"),
    "pair with another key": (
        edit_pairs(lambda rows: rows[0].update(key=key(9, "z"))),
        r"pairs.parquet: pair with another row key than in the dataset \(row 0\)",
    ),
    "pair of an unknown row": (
        edit_pairs(lambda rows: rows[-1].update(row=99)),
        r"pairs.parquet: pair of a row that is not in the dataset \(row 99\)",
    ),
    "pair of a quarantined row": (
        edit_pairs(lambda rows: rows[3].update(row=3)),
        r"pairs.parquet: pair of a row that is in quarantine.jsonl \(row 3\)",
    ),
    "column missing": (
        replace_table("pairs.parquet", lambda table: table.drop_columns("image")),
        r"pairs.parquet: corrupted; run the same",
    ),
    "column of another type": (
        replace_table("rows.parquet", lambda table: table.append_column("x", table["image"])),
        r"rows.parquet: corrupted; run the same",
    ),
    "row missing": (
        edit_pairs(lambda rows: rows.pop(1), "rows.parquet"),
        r"rows.parquet: 8 rows, but the manifest counts 9; run the same",
    ),
    "row duplicated": (
        edit_pairs(lambda rows: rows.insert(1, rows[0]), "rows.parquet"),
        r"rows.parquet: row out of order or duplicate \(row 0\)",
    ),
    "quarantined row in rows": (
        edit_pairs(lambda rows: rows[3].update(row=3, key=key(3, "a")), "rows.parquet"),
        r"rows.parquet: row that is in quarantine.jsonl \(row 3\)",
    ),
    "row with another key": (
        edit_pairs(lambda rows: rows[0].update(key=key(9, "z")), "rows.parquet"),
        r"rows.parquet: row with another row key than in the dataset \(row 0\)",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_is_reported_with_its_object(problem: str, completed: ObjectStore) -> None:
    cause, message = PROBLEMS[problem]
    cause(completed)
    lines = "\n".join(verify(completed).problems)
    assert lines.startswith(completed.uri)
    assert re.search(message, lines), lines


def test_verify_reports_that_no_run_has_completed(local: ObjectStore) -> None:
    with pytest.raises(StoreError, match="there is no output here"):
        verify(local)
    open_output(local)
    assert verify(local).problems == [
        f"{local.uri}/manifest.json: no run has completed yet; run the same command again"
    ]


def stored_of(store: ObjectStore, configuration: str) -> set[str]:
    """Names of the objects with rows of a configuration."""
    batches = {
        completions_of([outcome(number, configuration) for number in range(start, start + 4)])[0]
        for start in range(0, ROWS, 4)
    }
    own = {name for name in store.list() if any(batch in name for batch in batches)}
    return own | set(store.list(f"{FOLDER.keys}/{configuration}"))


def test_clean_keeps_the_newest_configuration(store: ObjectStore, complete: Complete) -> None:
    complete(store, "a", 300)
    complete(store, "b", 200)
    exports = {name: store.read(name) for name in store.list() if "/" not in name}
    of_a, of_b, runs = stored_of(store, "a"), stored_of(store, "b"), store.list("runs")
    unused = find_unused(store)
    assert len(of_a) == 3 + 3 + 1
    # The row without an image belongs to both configurations, so its part stays.
    [shared] = completions_of([outcome(number, "a") for number in range(4, 8)])[:1]
    assert all(name.startswith(f"{PARTS}/{shared}-") for name in of_a - set(unused.objects))
    assert not of_b & set(unused.objects)
    sizes = store.sizes()
    assert unused.objects == {name: sizes[name] for name in unused.objects}
    remove_unused(store, unused)
    assert of_b <= set(store.list())
    assert store.list("runs") == runs
    assert {name: store.read(name) for name in exports} == exports
    assert verify(store).problems == []
    assert find_unused(store).objects == {}


def test_clean_keeps_the_given_number_of_configurations(
    local: ObjectStore, complete: Complete
) -> None:
    for configuration, ago in (("a", 300), ("b", 100), ("c", 200)):
        complete(local, configuration, ago)
    assert find_unused(local, keep=3).objects == {}
    removed = set(find_unused(local, keep=2).objects)
    assert f"{FOLDER.keys}/a/d" in removed
    assert not removed & (stored_of(local, "b") | stored_of(local, "c"))
    remove_unused(local, find_unused(local))
    # Configurations that were dropped before do not count.
    assert find_unused(local, keep=2).objects == {}


def test_the_parts_of_an_unused_parser_are_removed(completed: ObjectStore) -> None:
    old = FOLDER.parts("old-v0")
    part = write_part(completed, old, key(1, "x"), [outcome(1, "a"), outcome(3, "a")])
    assert list(find_unused(completed).objects) == [part]
    completed.write(part, b"corrupted")
    unused = find_unused(completed)
    assert list(unused.objects) == [part]
    remove_unused(completed, unused)
    assert not Path(completed.uri_of(old)).exists()


def test_clean_refuses_while_a_run_is_in_progress(
    completed: ObjectStore, write_record: WriteRecord
) -> None:
    write_record(completed, "a", 5, "running")
    for force in (False, True):
        with pytest.raises(StoreError, match=r"a run on d\.json is in progress \(last heartbeat"):
            find_unused(completed, force=force)


@pytest.mark.parametrize(
    ("state", "ago"),
    [("running", 90), ("failed", 5), ("interrupted", 5)],
    ids=["killed", "failed", "interrupted"],
)
def test_clean_refuses_after_an_unfinished_run_unless_forced(
    state: str, ago: float, completed: ObjectStore, write_record: WriteRecord
) -> None:
    dropped = write_record(completed, "b", ago, state).run
    batch = plant_completions(completed, [outcome(1, "b")])
    with pytest.raises(StoreError, match="did not complete, so its rows are not known yet"):
        find_unused(completed)
    unused = find_unused(completed, force=True)
    assert list(unused.objects) == [f"{FOLDER.completions}/{batch}"]
    before = {run.run: run for run in read_runs(completed)}
    remove_unused(completed, unused)
    assert find_unused(completed).objects == {}  # force is not needed any more
    before[dropped] = before[dropped].model_copy(update={"dropped": True})
    assert {run.run: run for run in read_runs(completed)} == before


def test_the_rows_of_a_run_that_completed_later_are_kept(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    complete(local, "a", 200)
    write_record(local, "b", 90, "failed")
    plant_completions(local, [outcome(1, "b")])
    complete(local, "b", 1)
    assert find_unused(local, keep=2).objects == {}


def test_a_run_is_not_finished_by_one_on_another_dataset(
    local: ObjectStore, complete: Complete, write_record: WriteRecord
) -> None:
    """It has the same configuration, but other rows."""
    write_record(local, "a", 300, "failed", keys=f"{FOLDER.keys}/a/other", dataset="other.json")
    complete(local, "a", 200)
    with pytest.raises(StoreError, match=r"the run on other\.json .* did not complete"):
        find_unused(local)


def test_nothing_is_removed_if_no_run_has_completed(
    local: ObjectStore, write_record: WriteRecord
) -> None:
    open_output(local)
    write_record(local, "a", 90, "running")
    with pytest.raises(StoreError, match="no run has completed"):
        find_unused(local, force=True)


def test_a_run_that_starts_meanwhile_stops_the_removal(
    completed_twice: ObjectStore, write_record: WriteRecord
) -> None:
    unused = find_unused(completed_twice)
    write_record(completed_twice, "a", 0, "running")
    before = completed_twice.list()
    with pytest.raises(StoreError, match="is in progress"):
        remove_unused(completed_twice, unused)
    assert completed_twice.list() == before


def test_corrupted_completions_are_not_removed(completed: ObjectStore) -> None:
    completed.write(f"{FOLDER.completions}/odd", b"?")
    unused = find_unused(completed)
    assert (unused.objects, unused.unreadable) == ({}, [f"{FOLDER.completions}/odd"])


@pytest.mark.parametrize("removals", range(7))
def test_a_killed_clean_leaves_a_valid_output(
    removals: int, completed_twice: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the dropped configuration must not count as failed once its answer is removed."""
    # Its name sorts first.
    write_part(completed_twice, PARTS, key(1, "x"), [answer(3, "at last")], time.time() + 60)
    remaining = removals
    original = ObjectStore.remove

    def remove(store: ObjectStore, path: str) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise KeyboardInterrupt
        original(store, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "remove", remove)
        patched.setattr("prefect_imageqa.tasks.exporting.clean_output.STORE_THREADS", 1)
        with pytest.raises(KeyboardInterrupt):
            remove_unused(completed_twice, find_unused(completed_twice))
    [status] = Ledger.read(completed_twice, PARTS).statuses([key(3, "a")])
    assert status in (RowStatus.ANSWERED, RowStatus.PENDING)
    assert verify(completed_twice).problems == []
    remove_unused(completed_twice, find_unused(completed_twice))
    assert find_unused(completed_twice).objects == {}
    assert not completed_twice.list(f"{FOLDER.keys}/a")
