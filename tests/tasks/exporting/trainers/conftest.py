"""An output with every kind of pair, and the dataset with its images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.trainers import ExportSource, write_export
from prefect_imageqa.tasks.exporting.trainers.export_record import ExportRecord
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined, Row
from prefect_imageqa.tasks.runs.exports import ExportFormat, Exports

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}

CHOICE = {"question": "Which colour?", "answer": "green", "options": ["red", "green"]}
TURNS = [
    {"question": "What is it?", "answer": "A square.", "turn": 1},
    {"question": "Its colour?", "answer": "Blue.", "turn": 2},
]

Pairs = list[dict[str, Any]]
MakeSource = Callable[..., ExportSource]
Export = Callable[..., ExportRecord]

ROWS: list[tuple[Any, Pairs]] = [
    ("red.png", [{"question": "Q0", "answer": "A0"}, {"question": "Q1", "answer": "A1 é"}]),
    ("green.png", [{**CHOICE, "correct": "B", "type": "colour"}]),
    ("blue.png", TURNS),
    ("red-again.png", [{"question": "Which?", "answer": "This one."}]),
]
"""Images and pairs of the rows; red-again.png has the content of red.png."""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with an image of each colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (32, 24), colour).save(folder / f"{name}.png")
    (folder / "red-again.png").write_bytes((folder / "red.png").read_bytes())
    return folder


@pytest.fixture
def reader() -> Iterator[ImageReader]:
    with ImageReader() as reader:
        yield reader


@pytest.fixture
def make_source(tmp_path: Path, drawn: Path, reader: ImageReader) -> MakeSource:
    """Makes an output of rows given as images and pairs; None for pairs is a quarantined row."""

    def make(
        rows: Sequence[tuple[Any, Pairs | None]] = ROWS,
        asked: Sequence[Any] = (),
        columns: Columns = Columns(image="image", conversation=None),  # noqa: B008 - frozen
        **fields: Any,
    ) -> ExportSource:
        output = ObjectStore(uri=str(tmp_path / "out"))
        records: list[dict[str, Any]] = [{"image": image} for image, _ in rows]
        for record, conversation in zip(records, asked, strict=False):
            record["asked"] = conversation
        table = [Row(n, record, f"d:{n}") for n, record in enumerate(records)]
        outcomes = [_outcome(n, pairs) for n, (_, pairs) in enumerate(rows)]
        export_rows.fn(output, outcomes, table, len(table), columns)
        source: dict[str, Any] = {
            "output": output,
            "rows": lambda: iter(table),
            "columns": columns,
            "base": ImageBase(str(drawn)),
            "reader": reader,
            "limits": ImageSettings(),
        }
        return ExportSource(**source | fields)

    return make


@pytest.fixture
def target(tmp_path: Path) -> ObjectStore:
    return ObjectStore(uri=str(tmp_path / "export"))


@pytest.fixture
def export(target: ObjectStore) -> Export:
    """Writes an export into `target`."""

    def export(source: ExportSource, name: ExportFormat, **exports: Any) -> ExportRecord:
        return write_export(source, name, Exports(formats=(name,), **exports), target)

    return export


def _outcome(number: int, pairs: Pairs | None) -> FinishedRow:
    key = f"{number:032x}"
    if pairs is None:
        return Quarantined(key, number, f"d:{number}", Kind.EMPTY, "nothing")
    return Answered(key, "raw", pairs, "m", 1, 1, 0.1, style="short@1")
