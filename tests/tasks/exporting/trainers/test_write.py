"""What all formats share: splits, images, what is left out, and whose files are replaced."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_imageqa.tasks.errors import DatasetError, ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.trainers import FORMATS, ExportSource, write_export
from prefect_imageqa.tasks.exporting.trainers.conversations import Conversation, ConversationImage
from prefect_imageqa.tasks.exporting.trainers.export_record import RECORD
from prefect_imageqa.tasks.exporting.trainers.splits import Splits
from prefect_imageqa.tasks.exporting.trainers.write import warning_lines
from prefect_imageqa.tasks.images.references import ImageBase, encode_png
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Row
from prefect_imageqa.tasks.runs.exports import Exports

from .conftest import COLOURS, ROWS, Export, MakeSource

QA = [{"question": "Q", "answer": "A"}]


def records(target: ObjectStore, name: str = "train.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(target.read(name))
    return found


def content(target: ObjectStore) -> dict[str, str]:
    """Digests of all files of an export."""
    return {name: hashlib.sha256(target.read(name)).hexdigest() for name in target.list()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_pairs_give_the_same_files(
    name: Any, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source()
    exports = Exports(formats=(name,), shard_size=2, validation=0.4)
    found = []
    for folder in ("a", "b"):
        target = ObjectStore(uri=str(tmp_path / folder))
        write_export(source, name, exports, target)
        write_export(source, name, exports, target)
        found.append(content(target))
    assert found[0] == found[1]


def conversation(*images: str, key: str = "k") -> Conversation:
    found = tuple(ConversationImage(image, image) for image in images)
    row = type("", (), {"key": key})()
    return Conversation("1-0", row, (), found)


def test_an_image_is_in_one_split_whatever_the_order() -> None:
    conversations = [conversation(str(number)) for number in range(2000)]
    splits = Splits(0.05, 7, has_many=False)
    sides = {c.images[0].identity: splits.of(c) for c in conversations}
    assert 60 < list(sides.values()).count("validation") < 140
    random.Random(1).shuffle(conversations)
    again = Splits(0.05, 7, has_many=False)
    assert {c.images[0].identity: again.of(c) for c in conversations} == sides
    other = Splits(0.05, 8, has_many=False)
    assert {c.images[0].identity: other.of(c) for c in conversations} != sides


def test_conversations_that_share_images_are_in_one_split() -> None:
    splits = Splits(0.5, 0, has_many=True)
    sides = {name: splits.of(conversation(name)) for name in "abcdefgh"}
    train = next(name for name, side in sides.items() if side == "train")
    validation = next(name for name, side in sides.items() if side == "validation")
    assert splits.of(conversation(train, "x")) == splits.of(conversation("x", "y")) == "train"
    assert splits.of(conversation("y")) == "train"
    assert splits.of(conversation(train, validation)) is None


@pytest.mark.parametrize("images", ["copy", "paths"])
def test_a_split_is_by_content(
    images: str, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    """Two files with the same picture are on the same side, however images are had."""
    source = make_source()
    sides = set()
    for seed in range(8):
        record = export(source, "llava", validation=0.5, split_seed=seed, images=images)
        ids = {
            split: {line["id"].split("-")[0] for line in records(target, f"{split}.json")}
            for split, counts in record.splits.items()
            if counts.files
        }
        sides |= {split for split, rows in ids.items() if "0" in rows}
        assert not any(len(rows & {"0", "3"}) == 1 for rows in ids.values())
    assert sides == {"train", "validation"}


def test_a_picture_is_on_one_side_however_images_are_had(
    make_source: MakeSource, export: Export, target: ObjectStore, drawn: Path, s3: str
) -> None:
    """By its own file also where a copy of it is another one, and wherever the file is."""
    remote = ObjectStore(uri=f"{s3}/split-{drawn.parent.name}")
    names = [f"{number}.{suffix}" for number in range(24) for suffix in ("webp", "jpg")]
    for number, name in enumerate(names):
        image = Image.new("RGB", (9, 9), (5 * number, 0, 0))
        image.convert("RGB" if name.endswith("webp") else "CMYK").save(drawn / name)
        remote.write(name, (drawn / name).read_bytes())
    source, found = make_source([(remote.uri_of(name), QA) for name in names]), []
    export(source, "llava", validation=0.5, images="paths")
    found.append([line["id"] for line in records(target, "validation.json")])
    source = make_source([(name, QA) for name in names])
    for images in ("copy", "paths"):
        export(source, "llava", validation=0.5, images=images)
        found.append([line["id"] for line in records(target, "validation.json")])
    export(source, "hf", validation=0.5)
    table = pq.read_table(Path(target.uri, "data/validation-00000.parquet"), columns=["id"])
    assert found == [table["id"].to_pylist()] * 3
    assert 0 < len(found[0]) < len(names)


@pytest.mark.parametrize(
    "text",
    [
        *("<image>", "say <IMAGE>", "<video>", "<audio>", "</img>", "<ref-object>", "<bbox>"),
        *("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|im-start|>"),
        *("</s>", "<s>", "<im_start>", "<im_patch>", "<start_of_turn>user", "[INST]", "[/INST]"),
        *("<<SYS>>", "<image_soft_token>", "<ref-image>", "<cot-process>", "<unk>", "<pad>"),
        *("<\uff5cUser\uff5c>", "<IMG_CONTEXT>", "[IMG]"),
    ],
)
def test_control_text_of_trainers_is_left_out(
    text: str, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    turns = [{**QA[0], "turn": 1}, {"question": text, "answer": "A", "turn": 2}]
    source = make_source(
        [
            ("red.png", [*QA, {"question": "Which?", "answer": f"a {text}"}]),
            ("red.png", turns),
            ("red.png", [{"question": "x < y > z", "answer": "<imagine>|a|"}]),
        ]
    )
    record = export(source, "llava")
    assert [line["id"] for line in records(target)] == ["0-0", "2-0"]
    (line,) = warning_lines(record)
    assert line.startswith("export llava leaves out 2 of 4 conversations: control text")
    assert line.endswith("(the first: d:0)")
    assert export_elsewhere(source, "openai", target).left_out == ()


def export_elsewhere(source: ExportSource, name: Any, target: ObjectStore) -> Any:
    return write_export(
        source, name, Exports(formats=(name,)), target.with_uri(f"{target.uri}-{name}")
    )


def test_images_that_cannot_be_read_cost_their_row(
    make_source: MakeSource, export: Export, target: ObjectStore, drawn: Path
) -> None:
    source = make_source([("red.png", QA), ("green.png", QA * 1), ("gone.png", QA), (b"x", QA)])
    (drawn / "green.png").write_bytes(b"not an image")
    record = export(source, "llava")
    assert [line["id"] for line in records(target)] == ["0-0"]
    (line,) = warning_lines(record)
    assert "leaves out 3 of 4 conversations: an image that cannot be read (the first: d:1" in line
    assert "\n" not in line


def test_copies_are_plain_and_upright_and_written_once(
    make_source: MakeSource, export: Export, target: ObjectStore, drawn: Path
) -> None:
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned.save(drawn / "turned.jpg", exif=exif)
    turned.convert("CMYK").save(drawn / "print.tiff")
    Image.new("RGB", (3000, 30), "red").save(drawn / "wide.png")
    names = ["red.png", "red-again.png", "turned.jpg", "print.tiff", "wide.png"]
    record = export(make_source([(name, QA) for name in names]), "llava")
    paths = [line["image"] for line in records(target)]
    assert paths[0] == paths[1]
    assert record.copies == len(set(paths)) == len(target.list("images")) == 4
    assert target.read(paths[0]) == (drawn / "red.png").read_bytes(), "unchanged"
    copies = [Image.open(Path(target.uri, path)) for path in paths]
    assert [image.size for image in copies[2:]] == [(20, 40), (40, 20), (3000, 30)]
    assert {(image.format, image.mode) for image in copies} <= {("PNG", "RGB"), ("JPEG", "RGB")}
    for path in paths:
        assert hashlib.sha256(target.read(path)).hexdigest() == Path(path).stem


def test_paths_are_absolute_or_relative_to_the_image_root(
    make_source: MakeSource, export: Export, target: ObjectStore, drawn: Path
) -> None:
    export(make_source(), "llava", images="paths")
    assert records(target)[0]["image"] == str(drawn / "red.png")
    rows = [(f"images/{image}", pairs) for image, pairs in ROWS]
    rooted = make_source(rows, base=ImageBase(str(drawn), str(drawn.parent)))
    export(rooted, "llava", images="paths")
    assert records(target)[0]["image"] == "images/red.png"
    export(rooted, "openai", images="paths")
    first = json.loads(target.read("train.jsonl").splitlines()[0])
    assert first["messages"][0]["content"][0]["image_url"]["url"] == "images/red.png"


def test_a_path_that_is_no_text_is_left_out(
    make_source: MakeSource, export: Export, target: ObjectStore, drawn: Path
) -> None:
    name = "caf\udce9.png"
    (drawn / name).write_bytes((drawn / "red.png").read_bytes())
    source = make_source([(name, QA), ("red.png", QA)])
    record = export(source, "llava", images="paths")
    assert [left.reason for left in record.left_out] == ["image"]
    assert export(source, "llava").copies == 1


def test_embedded_images_have_no_paths_but_copies(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    source = make_source([(encode_png(Image.new("RGB", (9, 9))), QA)])
    with pytest.raises(DatasetError, match=r"d:0 embeds its image.*--images copy or embed"):
        export(source, "llava", images="paths")
    assert export(source, "llava").copies == 1


def test_images_that_only_the_conversation_has(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    parts = [{"type": "image", "image": "blue.png"}, {"type": "text", "text": "Which?"}]
    asked = [None, [{"role": "user", "content": parts}]]
    columns = Columns(image="image", conversation="asked")
    source = make_source([("red.png", QA), ("red.png", QA)], asked=asked, columns=columns)
    export(source, "llava")
    assert [len(line["image"]) for line in records(target)] == [1, 2]
    parts[0]["image"] = "green.png"
    with pytest.raises(DatasetError, match="d:1 has other images than row 1 of the run had"):
        export(source, "llava")


def test_rows_without_images(make_source: MakeSource, export: Export, target: ObjectStore) -> None:
    source = make_source([(None, QA), (None, QA)])
    source = replace(source, rows=None, columns=Columns(image=None))
    export(source, "llava", validation=0.2)
    assert [set(line) for line in records(target)] == [{"id", "conversations"}] * 2
    assert export_elsewhere(source, "hf", target).splits["train"].conversations == 2


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_without_pairs_gives_no_files(
    name: Any, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    export(make_source(), name)
    record = export(make_source([("red.png", None), ("red.png", [])]), name)
    assert (record.splits["train"].conversations, record.splits["train"].files) == (0, ())
    assert set(target.list()) <= {RECORD, "README.md", "dataset_info.json"}
    (line,) = warning_lines(record)
    assert line == f"export {name} has no conversation, and therefore no file of any"


@pytest.mark.parametrize(
    ("share", "empty", "less"), [(1e-9, "validation", "larger"), (1 - 1e-9, "train", "smaller")]
)
def test_an_empty_split_is_said_and_has_no_file(
    share: float,
    empty: str,
    less: str,
    make_source: MakeSource,
    export: Export,
    target: ObjectStore,
) -> None:
    (line,) = warning_lines(export(make_source(), "hf", validation=share))
    assert line.startswith(f"export hf has no {empty} split: ")
    assert f"a {less} share" in line
    assert len(target.list("data")) == 1
    assert f"split: {empty}" not in target.read("README.md").decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:3], "the dataset has no row 3, which has pairs"),
        (lambda rows: [rows[1], *rows[1:]], "d:1 has other images than row 0 of the run had"),
        (lambda rows: rows[::-1], "d:3 has other images than row 0 of the run had"),
    ],
    ids=["shorter", "other images", "other order"],
)
def test_another_dataset_is_refused(
    change: Callable[[list[Row]], list[Row]], message: str, make_source: MakeSource, export: Export
) -> None:
    embedded = [encode_png(Image.new("RGB", (9, 9), colour)) for colour in COLOURS]
    source = make_source([(image, QA) for image in embedded])
    assert source.rows is not None
    changed = change(list(source.rows()))
    rows = [replace(row, index=number) for number, row in enumerate(changed)]
    with pytest.raises(DatasetError, match=message):
        export(replace(source, rows=lambda: iter(rows)), "llava")


def test_files_of_others_are_not_replaced(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    source = make_source()
    target.write("notes.txt", b"mine")
    with pytest.raises(StoreError, match=r"that no export has written, such as notes\.txt: choose"):
        export(source, "hf")
    target.remove("notes.txt")
    export(source, "hf")
    target.write("notes.txt", b"mine")
    export(source, "hf", shard_size=1)  # in the folder of an export it is no obstacle
    card = target.read("README.md")
    target.write("README.md", card + b"my own words")
    with pytest.raises(StoreError, match=r"README\.md is not as an export has written it"):
        export(source, "hf")
    target.write("README.md", card)
    first = target.read("data/train-00000.parquet")
    target.write("data/train-00000.parquet", first + b"mine")
    with pytest.raises(StoreError, match=r"train-00000\.parquet is not as an export"):
        export(source, "hf")
    target.write("data/train-00000.parquet", first)
    target.write("data/train-99999.parquet", b"mine")
    with pytest.raises(StoreError, match=r"train-99999\.parquet is not as an export"):
        export(source, "hf")
    assert target.read("notes.txt") == b"mine"


@pytest.mark.parametrize("record", [b"{", b"{}", b'{"format": "llava", "state": "x"}'], ids=repr)
def test_a_record_that_is_none_is_refused(
    record: bytes, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    target.write(RECORD, record)
    with pytest.raises(ObjectCorruptedError, match="is not the record of an export"):
        export(make_source(), "llava")


@pytest.mark.parametrize("name", ["README.md", "dataset_info.json", "train.parquet"])
def test_a_record_makes_no_file_ours(
    name: str, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    """A record may have been put beside files of others."""
    target.write(RECORD, b'{"format": "llava", "state": "writing", "images": "copy"}')
    target.write(f"images/{'a' * 64}.png", b"mine")
    target.write(name, b"mine")
    with pytest.raises(StoreError, match=f"{name} is not as an export has written it"):
        export(make_source(), "llava")
    target.remove(name)
    export(make_source(), "llava")
    assert target.read(f"images/{'a' * 64}.png") == b"mine"


def test_a_changed_card_is_kept_by_an_export_of_another_format(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    export(make_source(), "hf")
    target.write("README.md", b"my own words")
    with pytest.raises(StoreError, match=r"README\.md is not as an export"):
        export(make_source(), "llava")


@pytest.mark.parametrize("written", ["README.md", RECORD])
def test_an_export_killed_at_its_end_is_written_again(
    written: str,
    make_source: MakeSource,
    export: Export,
    target: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before and after the files beside the records, with an earlier export in the folder."""
    export(make_source(ROWS[:1]), "hf")
    write, seen = ObjectStore.write, []

    def killed(store: ObjectStore, name: str, data: bytes) -> None:
        seen.append(name)
        if name == written and seen.count(RECORD) > 1:
            raise KeyboardInterrupt
        write(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            export(make_source(), "hf")
    assert export(make_source(), "hf").state == "complete"


def test_a_killed_export_is_written_again(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    source = make_source(ROWS * 6)
    assert source.rows is not None
    rows = list(source.rows())

    def failing() -> Iterator[Row]:
        yield from rows[:-1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(replace(source, rows=failing), "llava", shard_size=1)
    assert "train-00002.json" in target.list()
    assert json.loads(target.read(RECORD))["state"] == "writing"
    export(source, "llava")
    assert [name for name in target.list() if "/" not in name] == [RECORD, "train.json"]


def test_copies_that_no_record_has_any_more_are_removed(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    export(make_source(), "llava")
    target.write("images/mine.png", b"mine")
    export(make_source(ROWS[:1]), "llava")
    assert len(target.list("images")) == 2
    assert target.read("images/mine.png") == b"mine"


def test_pairs_that_are_no_export_are_refused(make_source: MakeSource, export: Export) -> None:
    source = make_source()
    source.output.write(PAIRS, b"PAR1")
    with pytest.raises(ObjectCorruptedError, match=r"pairs\.parquet is corrupted"):
        export(source, "llava")


def test_an_export_on_s3(make_source: MakeSource, s3: str, tmp_path: Path) -> None:
    target = ObjectStore(uri=f"{s3}/export-{tmp_path.name}")
    for size in (1, None):
        exports = Exports(formats=("llava",), shard_size=size)
        write_export(make_source(), "llava", exports, target)
    assert len(records(target)) == 5
    assert len(target.list()) == 5
