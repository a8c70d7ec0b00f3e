"""The dataset card and the exports, loaded by the `datasets` library."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import load_dataset
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS_SCHEMA
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, Kind, Quarantined, Row
from prefect_imageqa.tasks.reporting.dataset_card import CARD, render_card
from prefect_imageqa.tasks.reporting.report import output_card
from prefect_imageqa.tasks.runs.run_record import RunRecord
from prefect_imageqa.tasks.storing.layout import PassFolder, open_output
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part

PIXELS = bytes(range(256))
OWN = ["id", "split", "odd"]

RECORDS: list[dict[str, Any]] = [
    {"id": "a7", "image": "a.png", "split": "train", "odd": 1},
    {"id": "b3", "image": {"bytes": PIXELS, "path": "b.png"}, "split": "test", "odd": {"x": 1}},
    {"id": "c1", "image": [PIXELS, "c.png"], "split": None},
    {"id": "d9", "image": "gone.png", "split": "train", "odd": 2},
]
QUARANTINED = 3


def pair(number: int, more: str = "") -> dict[str, str]:
    return {"question": f"Q{number}{more}", "answer": f"A{number}"}


@pytest.fixture(scope="module")
def output(
    tmp_path_factory: pytest.TempPathFactory, record_of: Callable[..., RunRecord]
) -> ObjectStore:
    """An output with completions, parts, records and exports, as a run leaves it."""
    store = ObjectStore(uri=str(tmp_path_factory.mktemp("hub") / "out"))
    open_output(store)
    folder = PassFolder()
    keys = [f"{number:032x}" for number in range(len(RECORDS))]
    stored = [
        Answered(key, f"raw {key}", [pair(n), pair(n, " or not")], "m", 1, 1, 0.1, style="x@1")
        for n, key in enumerate(keys)
        if n != QUARANTINED
    ]
    failed = Quarantined(keys[QUARANTINED], 3, "d.json[3]", Kind.IMAGE_MISSING, "no file")
    write_part(store, folder.parts("qa_pairs-v1"), keys[0], [*stored, failed])
    store.write(f"{folder.completions}/{keys[0]}", b"{}")
    rows = [Row(number, record, f"d.json[{number}]") for number, record in enumerate(RECORDS)]
    ledger = Ledger.read(store, folder.parts("qa_pairs-v1"))
    columns = Columns(image="image", conversation=None)
    counts = export_rows.fn(store, ledger.outcomes(keys), rows, len(keys), columns)
    run = record_of(counts=counts)
    run.write(store)
    store.write(CARD, output_card(store, run, []).encode())
    return store


@pytest.fixture(scope="module")
def clone(output: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clone of what someone has uploaded to the Hub: the files for people and trainers."""
    folder = tmp_path_factory.mktemp("clone") / "qa"
    (folder / ".git").mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.parquet filter=lfs diff=lfs merge=lfs -text\n")
    for path in Path(output.uri).iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return str(folder)


@pytest.fixture(params=["output", "clone"])
def folder(request: pytest.FixtureRequest) -> str:
    if request.param == "clone":
        return str(request.getfixturevalue("clone"))
    return str(request.getfixturevalue("output").uri)


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streaming"])
@pytest.mark.parametrize(
    ("configuration", "lines", "columns"),
    [
        (None, 6, [*PAIRS_SCHEMA.names, *OWN]),
        ("pairs", 6, [*PAIRS_SCHEMA.names, *OWN]),
        ("rows", 3, ["row", "key", "image", "reply", "reasoning", *OWN]),
    ],
    ids=["default", "pairs", "rows"],
)
def test_the_configurations_of_the_card_are_loaded(
    configuration: str | None,
    lines: int,
    columns: list[str],
    streaming: bool,
    folder: str,
    tmp_path: Path,
) -> None:
    arguments = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path)}
    loaded = list(load_dataset(folder, configuration, **arguments))
    assert len(loaded) == lines
    assert [list(line) for line in loaded] == [columns] * lines
    by_row = {line["row"]: line for line in loaded}
    assert list(by_row) == [0, 1, 2]
    assert [by_row[row]["image"] for row in by_row] == [
        *(["a.png"], ["b.png"], ["row-000002", "c.png"])
    ]
    assert [by_row[row]["odd"] for row in by_row] == ["1", '{"x": 1}', None]


@pytest.mark.parametrize("configuration", ["pairs", "rows"])
def test_each_of_the_outputs_of_one_name_is_loaded(
    configuration: str, record_of: Callable[..., RunRecord], tmp_path: Path
) -> None:
    """`datasets` caches by the last name of the folder, and by the card."""
    loaded, cards = [], []
    run = record_of()
    for number, text in enumerate(("a", "b", "a")):
        store = ObjectStore(uri=str(tmp_path / str(number) / "out"))
        answer = Answered("0" * 32, text, [{"question": "Q", "answer": text}], "m", 1, 1, 0.1)
        rows = [Row(0, {"image": "a.png"}, "d.json[0]")]
        export_rows.fn(store, [answer], rows, 1, Columns(image="image", conversation=None))
        cards.append(output_card(store, run, []))
        store.write(CARD, cards[-1].encode())
        arguments = {"split": "train", "cache_dir": str(tmp_path / "cache")}
        found = load_dataset(store.uri, configuration, **arguments)
        loaded += found["answer" if configuration == "pairs" else "reply"][:]
    assert loaded == ["a", "b", "a"]
    assert cards[0] == cards[2], "the same content gives the same card"


def test_the_answers_are_loaded_as_json_lines(folder: str, tmp_path: Path) -> None:
    source = {"data_files": f"{folder}/qa.jsonl", "cache_dir": str(tmp_path)}
    loaded = load_dataset("json", split="train", **source)
    assert loaded["id"][:] == ["a7", "b3", "c1"]


def test_pairs_are_joined_with_the_dataset_by_its_own_id(output: ObjectStore) -> None:
    pairs = pd.read_parquet(f"{output.uri}/pairs.parquet")
    dataset = pd.DataFrame(RECORDS)
    joined = pairs.merge(dataset, on="id", suffixes=("", "_dataset"), validate="many_to_one")
    assert joined["question"].tolist() == [
        question for n in range(3) for question in (f"Q{n}", f"Q{n} or not")
    ]
    assert joined["row"].tolist() == [0, 0, 1, 1, 2, 2]
    embedded = dataset["image"][1]
    assert joined["image"][2].tolist() == [embedded["path"]]
    rows = pd.read_parquet(f"{output.uri}/rows.parquet")
    assert pairs.merge(rows, on="row", validate="many_to_one")["reply"].nunique() == 3


def test_the_card_lists_the_datasets_columns(record_of: Callable[..., RunRecord]) -> None:
    columns = [("id", "string"), ("<b>\n# x", "int64"), *[(f"c{n}", "bool") for n in range(40)]]
    card = render_card(record_of(), [], columns)
    assert r"id (string), \<b\> # x (int64), c0 (bool)" in card
    assert "c27 (bool), and 12 more. A column" in card
    assert "The dataset's own columns" not in render_card(record_of(), [])
