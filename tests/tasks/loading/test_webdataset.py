import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading import long_records, webdataset
from prefect_imageqa.tasks.loading.files import find_files
from prefect_imageqa.tasks.loading.tables import read_table
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Problem

TURNS = [{"from": "human", "value": "What?"}]
MEMBERS = [
    ("train/0.jpg", b"J0"),
    ("train/0.json", json.dumps({"image": "x/0.jpg", "caption": "c", "id": 7}).encode()),
    ("train/0.txt", "ü".encode()),
    ("train/0.npy", b"\x93NUMPY\0"),
    ("._0.jpg", b"a file of a Mac"),
    ("1.0.png", b"P0"),
    ("1.1.PNG", b"P1"),
    ("1.cls", b"7"),
    ("2.conversations.json", json.dumps(TURNS).encode()),
    ("2.jpeg", b"J2"),
]
RECORDS = [
    {
        "__key__": "train/0",
        "image": b"J0",
        "txt": "ü",
        "json.image": "x/0.jpg",
        "caption": "c",
        "id": 7,
    },
    {"__key__": "1", "image": [b"P0", b"P1"], "cls": "7"},
    {"__key__": "2", "image": b"J2", "conversations": TURNS},
]


def tar(members: list[tuple[str, bytes]], **info: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in info.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def read(uri: str) -> list[Any]:
    """The records, and the messages of problems."""
    files = find_files(uri)
    assert files.format == "webdataset"
    return [
        record.message if isinstance(record, Problem) else record
        for file, label in zip(files.files, files.labels, strict=True)
        for _, record in read_table(file, label, files.format, None)
    ]


def save(path: Path, data: bytes) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("name", ["d.tar", "d.tar.gz", "d.tgz"])
def test_samples_become_records(tmp_path: Path, name: str) -> None:
    data = tar(MEMBERS)
    path = save(tmp_path / name, data if name == "d.tar" else gzip.compress(data))
    assert read(path) == RECORDS


@pytest.mark.parametrize("source", ["", "/*.tar", "/s-{00..01}.tar"])
def test_several_shards(tmp_path: Path, source: str) -> None:
    save(tmp_path / "shards" / "s-00.tar", tar(MEMBERS))
    save(tmp_path / "shards" / "s-01.tar", tar(MEMBERS))
    assert read(f"{tmp_path}/shards{source}") == RECORDS * 2


def test_a_range_names_its_files(tmp_path: Path) -> None:
    """The output may be beside them, as beside a single file; a missing one is an error."""
    save(tmp_path / "s-00.tar", tar(MEMBERS))
    files = find_files(f"{tmp_path}/s-{{00..00}}.tar")
    assert (files.name, files.searched) == ("s-{00..00}.tar", False)
    with pytest.raises(DatasetError, match=r"no such file: s-01\.tar"):
        find_files(f"{tmp_path}/s-{{00..01}}.tar")


def test_shards_on_s3(s3: str, tmp_path: Path) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("s-0.tar", tar(MEMBERS))
    store.write("s-1.tar", tar(MEMBERS))
    for source in (store.uri, f"{store.uri}/s-{{0..1}}.tar"):
        assert read(source) == RECORDS * 2


def test_a_sample_that_is_too_large_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_RECORD_BYTES", 3 << 20)
    monkeypatch.setattr(long_records, "MAX_RECORD_BYTES", 3 << 20)
    large = bytes(2 << 20)
    members = [("0.jpg", large), ("1.0.jpg", large), ("1.1.jpg", large), ("2.jpg", b"J")]
    first, problem, last = read(save(tmp_path / "d.tar", tar(members)))
    assert (first["__key__"], last["image"]) == ("0", b"J")
    assert problem.startswith("sample '1' has 4 MB, and a record may have 3 MB")


def test_json_that_is_not_valid_costs_its_row(tmp_path: Path) -> None:
    members = [("0.jpg", b"J"), ("0.json", b"{"), ("1.jpg", b"J")]
    problem, good = read(save(tmp_path / "d.tar", tar(members)))
    assert problem.startswith("the JSON of sample '0' is not valid: ")
    assert good["image"] == b"J"


@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["1.png", "10.png", "2.png"], [b"1.png", b"2.png", b"10.png"]),
        (["image10.jpg", "image9.jpg"], [b"image9.jpg", b"image10.jpg"]),
        (["img_01.jpg", "img_00.jpg", "txt"], [b"img_00.jpg", b"img_01.jpg"]),
        (["1.10.png", "1.9.png", "0.11.png"], [b"0.11.png", b"1.9.png", b"1.10.png"]),
        (["image.png"], b"image.png"),
        (["image.txt", "png"], b"png"),
    ],
    ids=["numbers", "image", "img", "pages", "one", "image-column-taken"],
)
def test_images_are_in_the_order_of_their_numbers(
    tmp_path: Path, names: list[str], image: Any
) -> None:
    """As `tar --sort=name` writes them, 10 comes before 2."""
    members = [(f"0.{name}", name.encode()) for name in names]
    (record,) = read(save(tmp_path / "d.tar", tar(members)))
    assert record["image"] == image


def test_an_image_with_a_name_is_a_column_of_that_name(tmp_path: Path) -> None:
    names = ("0.jpg", "0.mask.png", "0.mask.jpg", "0.depth.map.png")
    (record,) = read(save(tmp_path / "d.tar", tar([(name, name.encode()) for name in names])))
    assert record == {
        "__key__": "0",
        "image": b"0.jpg",
        "mask": b"0.mask.png",
        "mask.jpg": b"0.mask.jpg",
        "depth.map": b"0.depth.map.png",
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("1.question.txt", "Was für?".encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        ("1.question.txt", "What?".encode("utf-16"), "is not UTF-8 text; save it as UTF-8"),
        ("1.question", b"\0W", "is not UTF-8 text; save it as UTF-8"),
        ("1.question.txt", bytes(3 << 20), "has 3,145,728 bytes, and a text may have 1,048,576"),
    ],
    ids=["latin-1", "utf-16", "binary", "large"],
)
def test_a_text_that_cannot_be_read_costs_its_row(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    """The row would get the user prompt in place of its question."""
    members = [("0.jpg", b"J"), ("0.question.txt", "\ufeffWhy?".encode()), ("1.jpg", b"J")]
    good, problem = read(save(tmp_path / "d.tar", tar([*members, (name, data)])))
    assert good["question"] == "Why?"
    assert problem == f"member {name!r} {reason}"


BOXES = [{"box": [1, 2]}]


@pytest.mark.parametrize(
    ("value", "column"),
    [(TURNS, "conversations"), (["a", "b"], "json"), (BOXES, "json"), ([], "json")],
    ids=["turns", "texts", "boxes", "empty"],
)
def test_a_list_of_turns_is_the_conversation(tmp_path: Path, value: Any, column: str) -> None:
    members = [("0.jpg", b"J"), ("0.json", json.dumps(value).encode())]
    (record,) = read(save(tmp_path / "d.tar", tar(members)))
    assert record == {"__key__": "0", "image": b"J", column: value}


def test_no_link_is_followed(tmp_path: Path) -> None:
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    assert read(save(tmp_path / "d.tar", tar([("0.txt", b"")], **link))) == []


LARGE = tar([(f"{i}.jpg", os.urandom(3000)) for i in range(20)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (LARGE[:30_000], "after 8 rows: the tar file is cut off or broken: unexpected end"),
        (LARGE[: 3584 * 2], "after 1 rows: the tar file is cut off or broken: it has no end"),
        (LARGE + LARGE, "after 20 rows: data follows the end: tar files that were joined"),
        (b"x" * 5000, "cannot be read: the tar file is cut off or broken: invalid header"),
        (b"", "cannot be read: the tar file is cut off or broken: it has no end"),
        (
            tar([("0.jpg", b""), ("1.jpg", b""), ("0.txt", b"q")]),
            "after 2 rows: the members of sample '0' are not adjacent, so samples were read in",
        ),
        (
            tar([("0.jpg", b"")], pax_headers={"comment": "x" * (2 << 20)}),
            "the tar file is cut off or broken: a header of 2",
        ),
    ],
    ids=["cut", "cut-between", "joined", "garbage", "empty", "not-adjacent", "long-header"],
)
def test_a_broken_shard_says_what_is_wrong(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(save(tmp_path / "d.tar", data))
    assert reason in str(caught.value)
