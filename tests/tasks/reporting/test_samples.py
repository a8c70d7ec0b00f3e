"""Sampled rows and statistics of a report, from an output built row by row."""

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from prefect_imageqa.tasks.errors import ObjectCorruptedError
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.qa_json import QA_JSONL
from prefect_imageqa.tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from prefect_imageqa.tasks.exporting.split import split_pairs
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.thumbnails import LARGE_SIDE, SIDE, thumbnail
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.keys import KeyList
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, QAPair, Quarantined, Row
from prefect_imageqa.tasks.reporting import row_images
from prefect_imageqa.tasks.reporting.facts import card, filters, gallery_note
from prefect_imageqa.tasks.reporting.row_images import ImageSource, RowImages
from prefect_imageqa.tasks.reporting.samples import (
    FILTERED_KIND,
    SampledRow,
    likely_sample,
    sample_rows,
)
from prefect_imageqa.tasks.reporting.statistics import Statistics, Tally, compute_statistics
from prefect_imageqa.tasks.runs.run_record import RunRecord, complete_run, completed_run
from prefect_imageqa.tasks.storing.key_index import pack_keys
from prefect_imageqa.tasks.storing.layout import JUDGED, PassFolder, open_output
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.row_keys import write_keys
from prefect_imageqa.tasks.storing.store import write_part
from prefect_imageqa.tasks.storing.stored_rows import StoredRows

PARTS = PassFolder().parts("qa_pairs-v1")
STARTED = "2026-03-01T10:00:00+00:00"
STARTED_AT = 1772359200.0

Fails = Callable[[int], Kind | None]
MakeOutput = Callable[[ObjectStore, int, Fails], None]


def png(number: int, side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, 80, 120)).save(file, "PNG")
    return file.getvalue()


def colour(uri: str) -> int:
    """The number passed to `png`, from a thumbnail of its image."""
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    pixel = Image.open(io.BytesIO(data)).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def key(number: int) -> str:
    return f"{number + 1:032x}"


def outcome(number: int, kind: Kind | None) -> FinishedRow:
    if kind:
        return Quarantined(key(number), number, f"d.json[{number}]", kind, "why", text="part")
    questions = [f"How many in {number}?", f"How big is {number}?"][: 1 + number % 2]
    pairs = [{"question": question, "answer": "Two."} for question in questions]
    return Answered(key(number), f"raw {number}", pairs, "m", 100 + number, 20, 0.25)


def every_fifth(number: int) -> Kind | None:
    return Kind.TRUNCATED if number % 5 == 4 else None


@pytest.fixture
def make_output(tmp_path: Path, record_of: Callable[..., RunRecord]) -> MakeOutput:
    """Makes the output of a completed run over a dataset whose row n has an image of colour n."""

    def make(store: ObjectStore, count: int, fails: Fails) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(png(number))
        records = [{"image": f"{number}.png", "id": number} for number in range(count)]
        (folder / "d.json").write_text(json.dumps(records))
        rows = [outcome(number, fails(number)) for number in range(count)]
        for start in range(0, count, 8):
            write_part(store, PARTS, key(start), rows[start : start + 8], STARTED_AT + 1 + start)
        keys = KeyList()
        for row in rows:
            keys.append(row.key)
        dataset = open_dataset(str(folder / "d.json"))
        ledger = Ledger.read(store, PARTS)
        counts = export_rows.fn(store, ledger.outcomes(keys), dataset.rows(), len(keys), Columns())
        run = record_of(
            started=STARTED,
            updated="2026-03-01T10:10:00+00:00",
            counts=counts,
            parameters={"dataset": str(folder / "d.json")},
        )
        write_keys(store, run.keys, keys)
        open_output(store)
        complete_run(store, run)

    return make


def stored_rows(store: ObjectStore) -> StoredRows:
    rows = StoredRows(store, PARTS)
    rows.sync()
    return rows


def source_of(store: ObjectStore) -> ImageSource:
    dataset = open_dataset(completed_run(store).parameters.dataset)
    return ImageSource(dataset.rows, dataset.columns, dataset.base)


def sampled(
    store: ObjectStore,
    answered: int = 60,
    quarantined: int = 40,
    *,
    has_images: bool = True,
    source: ImageSource | None = None,
) -> list[SampledRow]:
    run = completed_run(store)
    with ImageReader(1 << 20) as reader:
        images = RowImages(source or source_of(store), reader, ImageSettings())
        return sample_rows(
            store,
            run,
            stored_rows(store),
            answered=answered,
            quarantined=quarantined,
            images=images if has_images else None,
        )


def thumbnails(row: SampledRow) -> list[str]:
    return [image.thumbnail for image in row.images if image.thumbnail]


def statistics_of(store: ObjectStore) -> Statistics:
    return compute_statistics(store, completed_run(store), stored_rows(store))


def test_all_rows_of_a_small_output_are_sampled(
    store: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(store, 10, every_fifth)
    rows = sampled(store)
    assert [row.row for row in rows] == list(range(10))
    assert [row.kind for row in rows] == ["", "", "", "", "truncated"] * 2
    for row in rows:
        assert row.key == key(row.row)
        [thumbnail_uri] = thumbnails(row)
        assert abs(colour(thumbnail_uri) - row.row) < 4
    answered, failed = rows[3], rows[4]
    assert answered.pairs == (QAPair("How many in 3?", "Two."), QAPair("How big is 3?", "Two."))
    assert (answered.text, answered.prompt_tokens, answered.latency) == ("raw 3", 103, 0.25)
    assert (failed.where, failed.reason, failed.text) == ("d.json[4]", "why", "part")


def test_rows_are_spread_evenly(local: ObjectStore, make_output: MakeOutput) -> None:
    make_output(local, 100, every_fifth)
    rows = sampled(local, answered=8, quarantined=4)
    assert [row.row for row in rows if not row.kind] == [0, 12, 25, 37, 50, 62, 75, 87]
    assert [row.row for row in rows if row.kind] == [4, 29, 54, 79]
    assert sampled(local, answered=8, quarantined=4) == rows


def test_every_kind_of_failure_gets_its_share(local: ObjectStore, make_output: MakeOutput) -> None:
    def fails(number: int) -> Kind | None:
        if number == 17:
            return Kind.NOT_AN_IMAGE
        return (None, Kind.EMPTY, Kind.UNPARSED)[number % 3]

    make_output(local, 60, fails)
    kinds = [row.kind for row in sampled(local, answered=0, quarantined=9)]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"not_an_image": 1, "empty": 4, "unparsed": 4}


def test_unreadable_images_are_left_out(
    local: ObjectStore, tmp_path: Path, make_output: MakeOutput
) -> None:
    make_output(local, 5, every_fifth)
    (tmp_path / "data" / "1.png").unlink()
    (tmp_path / "data" / "2.png").write_bytes(b"<script>alert(1)</script>")
    assert [len(thumbnails(row)) for row in sampled(local)] == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("value", "names", "readable"),
    [
        ("0.png", ["0.png"], 1),
        (["0.png", "gone.png"], ["0.png", "gone.png"], 0),
        (["0.png"] * 7, ["0.png"] * 4, 4),
        ({"bytes": png(1), "path": "photos/a.png"}, ["photos/a.png"], 1),
        (png(1), ["row-000000"], 1),
        ("http://u:secret@127.0.0.1:9/a.png?token=secret", ["http://127.0.0.1:9/a.png"], 0),
        (f"deep/{'x' * 300}.png", [f"…{'x' * 115}.png"], 0),
        (None, [], 0),
    ],
    ids=["path", "list", "many", "Hugging Face", "bytes", "URL", "long", "none"],
)
def test_images_have_names(
    value: Any, names: list[str], readable: int, local: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(local, 1, lambda _: None)
    record = {"image": value}
    base = source_of(local).base
    columns = Columns(image="image", conversation=None)
    source = ImageSource(lambda: (row for row in [Row(0, record, "d")]), columns, base)
    [row] = sampled(local, source=source)
    assert [image.name for image in row.images] == names
    assert len(thumbnails(row)) == readable
    assert all(bool(image.large) == bool(image.thumbnail) for image in row.images)
    assert row.more_images == (3 if names == ["0.png"] * 4 else 0)


def test_rows_that_have_passed_are_not_read_again(
    local: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(local, 30, every_fifth)
    source, read = source_of(local), 0

    def rows() -> Iterator[Row]:
        nonlocal read
        read += 1
        yield from source.rows()

    kinds = stored_rows(local).index.find(pack_keys([key(n) for n in range(30)])).locations["kind"]
    wanted = likely_sample(kinds, answered=7, quarantined=3)
    assert {row.row for row in sampled(local, 7, 3)} == wanted
    with ImageReader(1 << 20) as reader:
        images = RowImages(replace(source, rows=rows), reader, ImageSettings())
        assert [row.index for row in images.watch(source.rows(), wanted)] == [*range(30)]
        options: dict[str, Any] = {"answered": 7, "quarantined": 3, "images": images}
        run, stored = completed_run(local), stored_rows(local)
        shown = {row.row: thumbnails(row) for row in sample_rows(local, run, stored, **options)}
        assert read == 0
        assert {row: colour(uri) for row, [uri] in shown.items()} == pytest.approx(
            {row: row for row in wanted}, abs=2
        )
        more = sample_rows(local, run, stored, **options | {"answered": 8})
        assert (read, len(more), all(map(thumbnails, more))) == (1, 11, True)


def test_rows_that_pass_twice_are_read_once(
    local: ObjectStore, make_output: MakeOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_output(local, 6, lambda _: None)
    source, read = source_of(local), list[Any]()

    def read_none(value: Any, *_: Any) -> tuple[()]:
        read.append(value)
        return ()

    monkeypatch.setattr(row_images, "sampled_images", read_none)
    with ImageReader(1 << 20) as reader:
        images = RowImages(source, reader, ImageSettings())
        for wanted in ({1, 4}, {1, 2}):
            assert len(list(images.watch(source.rows(), wanted))) == 6
        assert images.of({1: None, 2: None, 4: None}) == {1: (), 2: (), 4: ()}
    assert len(read) == 3


def test_a_failure_moves_only_its_own_place_in_the_sample() -> None:
    kinds = np.zeros(100, np.uint8)
    assert likely_sample(kinds, answered=5, quarantined=0) == {0, 20, 40, 60, 80}
    kinds[[40, 41, 50]] = 1
    assert likely_sample(kinds, answered=5, quarantined=0) == {0, 20, 42, 60, 80}


@pytest.mark.parametrize("answered", [range(90, 100), range(3)], ids=["last", "first"])
def test_long_stretches_of_failures_make_the_sample_no_smaller(answered: range) -> None:
    kinds = np.ones(100, np.uint8)
    kinds[answered] = 0
    sample = likely_sample(kinds, answered=3, quarantined=0)
    assert (len(sample), sample <= {*answered}) == (3, True)


def test_images_can_be_enlarged(local: ObjectStore, make_output: MakeOutput) -> None:
    make_output(local, 1, lambda _: None)
    only = Row(0, {"image": png(1, 900)}, "d")
    source = replace(source_of(local), rows=lambda: (row for row in [only]))
    [row] = sampled(local, source=source)
    [image] = row.images
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size
        for uri in (image.thumbnail, image.large)
    ]
    assert sizes == [(SIDE, SIDE), (LARGE_SIDE, LARGE_SIDE)]
    assert len(image.large) < 82_000


def test_a_changed_dataset_shows_no_wrong_images(
    local: ObjectStore, tmp_path: Path, make_output: MakeOutput
) -> None:
    """The location of a quarantined row no longer matches, so its image is not shown."""
    make_output(local, 5, every_fifth)
    path = tmp_path / "data" / "d.json"
    lines = "\n".join(json.dumps(record) for record in json.loads(path.read_text()))
    path.write_text(lines)
    assert [len(thumbnails(row)) for row in sampled(local)] == [1, 1, 1, 1, 0]


def test_an_output_does_not_say_where_images_are(
    local: ObjectStore, tmp_path: Path, make_output: MakeOutput
) -> None:
    make_output(local, 5, every_fifth)
    (tmp_path / "private.png").write_bytes(png(200))
    planted = json.dumps({"image": str(tmp_path / "private.png"), "output": "raw"}) + "\n"
    local.write(QA_JSONL, planted.encode() * 4)
    assert [row.images for row in sampled(local, has_images=False)] == [()] * 5
    shown = [colour(row.images[0].thumbnail) for row in sampled(local)]
    assert max(shown) < 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (QUARANTINE_JSONL, b"{"),
        (QUARANTINE_JSONL, b'{"row": 70, "where": "", "kind": "empty", "message": "", "key": ""}'),
        (QUARANTINE_JSONL, b'{"row": 0, "kind": "<b>"}'),
    ],
    ids=["not JSON", "no such row", "no such kind"],
)
def test_a_corrupted_export_is_reported(
    name: str, content: bytes, local: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(local, 5, every_fifth)
    local.write(name, content)
    with pytest.raises(ObjectCorruptedError, match=f"{name} is corrupted"):
        sampled(local)


def test_a_row_with_an_unanswered_question_is_shown_as_answered(
    local: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(local, 5, every_fifth)
    lines = [json.loads(line) for line in local.lines("quarantine.jsonl")]
    lines.insert(0, {**lines[0], "row": 1, "question": "And what of it?"})
    local.write("quarantine.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert [row.kind for row in sampled(local)] == ["", "", "", "", "truncated"]


def test_statistics_cover_all_answered_rows(store: ObjectStore, make_output: MakeOutput) -> None:
    make_output(store, 20, every_fifth)
    statistics = statistics_of(store)
    answered = [number for number in range(20) if number % 5 != 4]
    pairs = [pair for number in answered for pair in outcome(number, None).pairs]  # type: ignore[union-attr]
    assert statistics.questions.sum == sum(len(pair.question) for pair in pairs)
    assert statistics.answers.quantile(0.5) == 4
    assert statistics.first_words == {"how": len(pairs)}
    assert statistics.prompt_tokens.sum == sum(100 + number for number in answered)
    assert statistics.completion_tokens.total == len(answered)
    assert statistics.latencies.quantile(1) == 25
    assert np.unique(statistics.stored_seconds).tolist() == [1, 9, 17]
    assert len(statistics.stored_seconds) == len(answered)


def test_rows_of_other_configurations_are_not_counted(
    local: ObjectStore, make_output: MakeOutput
) -> None:
    make_output(local, 5, every_fifth)
    other = Answered(key(1000), "x", [], "m", 10**6, 1, 1.0)
    write_part(local, PARTS, key(1000), [other], STARTED_AT + 2)
    statistics = statistics_of(local)
    assert statistics.prompt_tokens.total == 4
    assert statistics.prompt_tokens.quantile(1) == 103


def test_empty_answers_have_no_length(local: ObjectStore, make_output: MakeOutput) -> None:
    make_output(local, 4, every_fifth)
    pairs = pq.read_table(io.BytesIO(local.read(PAIRS)))
    texts = pa.array([None, *pairs["answer"].to_pylist()[1:]])
    position = pairs.schema.get_field_index("answer")
    file = io.BytesIO()
    pq.write_table(pairs.set_column(position, "answer", texts), file)
    local.write(PAIRS, file.getvalue())
    answers = statistics_of(local).answers
    assert (answers.total, answers.sum) == (len(pairs) - 1, 4 * (len(pairs) - 1))


@pytest.mark.parametrize(
    ("read", "corrupted"),
    [
        (statistics_of, {"prompt_tokens": None}),
        (statistics_of, {"latency": float("nan")}),
    ],
    ids=["tokens", "latency"],
)
def test_a_corrupted_row_is_reported(
    read: Callable[[ObjectStore], object],
    corrupted: dict[str, Any],
    local: ObjectStore,
    make_output: MakeOutput,
) -> None:
    make_output(local, 5, every_fifth)
    row = replace(outcome(1, None), **corrupted)
    write_part(local, PARTS, key(1000), [row], STARTED_AT + 1000)
    with pytest.raises(ObjectCorruptedError, match=r"corrupted.*: (delete it and )?run again"):
        read(local)


@pytest.mark.parametrize(
    ("values", "total", "quantiles"),
    [
        ([[3]], 3, (3, 3)),
        ([[1, 2, 3, 4], [0]], 10, (2, 4)),
        ([[5], [1, 1]], 7, (1, 5)),
        ([[10**9]], 65_535, (65_535, 65_535)),
    ],
    ids=["one", "smaller values later", "larger values first", "above the maximum"],
)
def test_a_tally_counts(
    values: Sequence[Sequence[int]], total: int, quantiles: tuple[int, int]
) -> None:
    tally = Tally()
    for some in values:
        tally.add(np.array(some))
    assert tally.total == sum(map(len, values))
    assert tally.sum == total
    assert (tally.quantile(0.5), tally.quantile(1)) == quantiles


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "size"),
    [(png(1, 8), (8, 8)), (png(1, 900), (SIDE, SIDE)), (noise(320), (SIDE, SIDE))],
    ids=["small", "large", "noise"],
)
def test_thumbnails_are_small_jpegs(data: bytes, size: tuple[int, int]) -> None:
    uri = thumbnail(data, ImageSettings())
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 33_000
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == size


def test_thumbnails_contain_no_metadata() -> None:
    file = io.BytesIO()
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Comment", "<script>secret place</script>" * 10_000)
    Image.new("RGB", (9, 9)).save(file, "PNG", pnginfo=metadata)
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 9)).save(jpeg, "JPEG", comment=b"secret place")
    for data in (file.getvalue(), jpeg.getvalue(), jpeg.getvalue() + b"secret place" * 50):
        encoded = base64.b64decode(thumbnail(data, ImageSettings()).partition(",")[2])
        assert encoded
        assert b"secret place" not in encoded


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        (b"", {}),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", {}),
        (png(1, 30)[:60], {}),
        (png(1, 30), {"max_pixels": 899}),
        (b"\xff\xd8\xff\xe0" + b"\0" * 500 + b"\xff\xd9", {}),
    ],
    ids=["empty", "SVG", "truncated", "too many pixels", "not a JPEG"],
)
def test_unsafe_images_have_no_thumbnail(data: bytes, changed: dict[str, Any]) -> None:
    assert thumbnail(data, ImageSettings(**changed)) == ""


def test_filtered_rows_are_shown_with_their_pairs_and_the_reason(
    make_output: MakeOutput, tmp_path: Path
) -> None:
    store = ObjectStore(uri=str(tmp_path / "out"))
    make_output(store, 20, every_fifth)
    store.write(JUDGED, store.read(PAIRS))
    split = split_pairs(store, "row % 4 <> 1 AND pair = 0")
    rows = {row.row: row for row in sampled(store)}
    filtered = [row for row in rows.values() if row.kind == FILTERED_KIND]
    assert [row.row for row in filtered] == [1, 5, 13, 17]
    assert len(filtered) == split.filtered_rows
    assert [len(row.pairs) for row in filtered] == [2] * 4
    assert {row.reason for row in filtered} == {"(row % 4) <> 1"}
    assert (len(rows[3].pairs), rows[3].kind) == (1, "")
    run = completed_run(store)
    counts = run.counts.model_copy(update={"ok": 12, "filtered": 4})
    cards = list(map(card, rows.values()))
    assert gallery_note(run.model_copy(update={"counts": counts}), cards) == (
        "12 of 12 answered, 4 of 4 filtered and 4 of 4 quarantined rows, spread evenly over the "
        "dataset."
    )
    assert [(fact.name, fact.note) for fact in filters(cards)] == [
        *(("all", "20"), ("answered", "12"), ("filtered", "4"), ("truncated", "4"))
    ]
