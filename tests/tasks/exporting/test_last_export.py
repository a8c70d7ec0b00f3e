"""Exports that are up to date stay as they are; any that are not are written again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.tasks.exporting.export import ALWAYS_EXPORTED, export_rows
from prefect_imageqa.tasks.exporting.last_export import export_inputs
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.qa_json import QA_JSON, QA_JSONL
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined, Row
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.storing.layout import EXPORTED, PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part

PARTS = PassFolder().parts("qa_pairs-v1")
KEYS = [f"{number:032x}" for number in range(3)]
ROWS = [Row(number, {"image": f"{number}.png"}, f"d:{number}") for number in range(3)]
COLUMNS = Columns(image="image", conversation=None)


def answered(number: int) -> Answered:
    pairs = [{"question": "What?", "answer": "A cat."}]
    return Answered(KEYS[number], f"raw {number}", pairs, "m", 100, 20, 0.25)


def quarantined(number: int, attempt: int = 0, kind: Kind = Kind.TRUNCATED) -> Quarantined:
    return Quarantined(
        KEYS[number], number, f"d:{number}", kind, "too long", None, 1, None, attempt
    )


OUTCOMES: list[FinishedRow] = [answered(0), quarantined(1), answered(2)]


def export(store: ObjectStore, inputs: str = "1", **options: Any) -> tuple[RunCounts, int]:
    """Export the rows; returns also how many of them were read."""
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for row in ROWS:
            read += 1
            yield row

    counts = export_rows.fn(store, OUTCOMES, rows(), 3, COLUMNS, inputs=inputs, **options)
    return counts, read


def stamps(store: ObjectStore, *more: str) -> dict[str, str]:
    return {name: store.stamp(name) for name in (*ALWAYS_EXPORTED, *more)}


def test_exports_that_are_up_to_date_stay_as_they_are(store: ObjectStore) -> None:
    counts, read = export(store, json_array=True)
    written = stamps(store, QA_JSON)
    assert (counts.rows, counts.ok, counts.pairs, read) == (3, 2, 2, 3)
    assert export(store, json_array=True) == (counts, 0)
    assert stamps(store, QA_JSON) == written


def edit(store: ObjectStore, name: str) -> None:
    store.write(name, store.read(name) + b" ")


@pytest.mark.parametrize("name", [*ALWAYS_EXPORTED, QA_JSON])
@pytest.mark.parametrize("change", [ObjectStore.remove, edit], ids=["removed", "edited"])
def test_a_missing_or_edited_export_is_written_again(
    change: Callable[[ObjectStore, str], None], name: str, store: ObjectStore
) -> None:
    counts, _ = export(store, json_array=True)
    content = store.read(name)
    change(store, name)
    assert export(store, json_array=True) == (counts, 3)
    assert store.read(name) == content
    assert export(store, json_array=True) == (counts, 0)


@pytest.mark.parametrize("inputs", ["2", ""], ids=["other", "unknown"])
def test_other_inputs_are_exported(inputs: str, local: ObjectStore) -> None:
    export(local)
    local.write(QA_JSONL, b"")
    assert export(local, inputs)[1] == 3
    assert local.read(QA_JSONL)
    # Only what was written last is known.
    assert export(local)[1] == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"inputs": "1", "counts": {"rows": 9}}'])
def test_a_record_that_is_none_is_not_believed(content: bytes, local: ObjectStore) -> None:
    export(local)
    local.write(EXPORTED, content)
    assert export(local)[1] == 3
    assert export(local)[1] == 0


def ledger_of(
    store: ObjectStore, *rows: FinishedRow, folder: str = PARTS, written: float = 1.0
) -> Ledger:
    """The ledger of an output to which some rows are added."""
    write_part(store, folder, f"{len(store.list()):032x}", rows, written)
    return Ledger.read(store, folder)


def digest_of(*passes: tuple[Ledger, Sequence[str]], rows: bytes = b"rows", **settings: Any) -> str:
    return export_inputs(rows, {"columns": "image", **settings}, passes)


def test_inputs_do_not_depend_on_where_rows_are_stored(local: ObjectStore) -> None:
    first = digest_of((ledger_of(local, *OUTCOMES), KEYS))
    other_parts = ledger_of(local.with_uri(f"{local.uri}/other"), *reversed(OUTCOMES))
    assert digest_of((other_parts, KEYS)) == first
    assert digest_of((Ledger.read(local, PARTS), KEYS)) == first


def test_inputs_differ_with_all_that_is_exported(local: ObjectStore) -> None:
    ledger = ledger_of(local, *OUTCOMES)
    digests = [
        digest_of((ledger, KEYS)),
        digest_of((ledger, KEYS), rows=b"other"),
        digest_of((ledger, KEYS), json_array=True),
        digest_of((ledger, KEYS[:2])),
        digest_of((ledger, [KEYS[1], KEYS[0], KEYS[2]])),
        digest_of((ledger, KEYS), (ledger, KEYS[:1])),
        digest_of((ledger_of(local, *OUTCOMES, folder=f"{PARTS}-other"), KEYS)),
    ]
    for changed in (
        quarantined(1, attempt=1),
        quarantined(1, attempt=2, kind=Kind.TIMEOUT),
        replace(answered(1), text="other"),
        replace(answered(1), text="a later answer"),
    ):
        later = ledger_of(local, changed, written=2.0 + len(digests))
        digests.append(digest_of((later, KEYS)))
    assert len(set(digests)) == len(digests)


def test_the_pairs_are_written_once_and_not_read(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    for method in ("open", "read"):
        original = getattr(ObjectStore, method)

        def counted(self: ObjectStore, path: str, *more: Any, original: Any = original) -> Any:
            opened.append(path)
            return original(self, path, *more)

        monkeypatch.setattr(ObjectStore, method, counted)
    export(local)
    export(local)
    assert PAIRS not in opened
