"""Each format as its reader loads it: the library itself, or the reader as it is documented."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from datasets import load_dataset
from PIL import Image
from prefect_imageqa.tasks.exporting.trainers import write_export
from prefect_imageqa.tasks.exporting.trainers.conversations import CHOICE_INSTRUCTION
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.exports import Exports

from .conftest import COLOURS, ROWS, Export, MakeSource

TWO: tuple[Any, list[dict[str, Any]]] = (
    ["red.png", "blue.png"],
    [{"question": "Which one is blue?", "answer": "The second."}],
)
"""A row with two images."""

CHOICE_TURN = (f"Which colour?\nA. red\nB. green\n{CHOICE_INSTRUCTION}", "B")

EXPECTED = [
    (["red"], [("Q0", "A0")]),
    (["red"], [("Q1", "A1 é")]),
    (["green"], [CHOICE_TURN]),
    (["blue"], [("What is it?", "A square."), ("Its colour?", "Blue.")]),
    (["red"], [("Which?", "This one.")]),
]
EXPECTED_TWO = (["red", "blue"], [("Which one is blue?", "The second.")])

Loaded = tuple[list[str], list[tuple[str, str]]]


def colour(image: Image.Image) -> str:
    """The colour of a picture, decoded."""
    assert image.size == (32, 24)
    found = image.convert("RGB").getpixel((5, 5))
    return next(name for name, value in COLOURS.items() if value == found)


def read_llava(folder: Path, name: str) -> list[Loaded]:
    """LLaVA and LLaVA-NeXT: one JSON list; `<image>` is moved to the start of its turn."""
    loaded = []
    for record in json.loads((folder / name).read_bytes()):
        assert isinstance(record["id"], str)
        loaded.append(_from_human_and_gpt(folder, record))
    return loaded


def read_qwen(folder: Path, name: str) -> list[Loaded]:
    """Qwen-VL: as many tags in human turns as images, or it raises."""
    records = json.loads((folder / name).read_bytes())
    assert all("id" not in record for record in records)
    return [_from_human_and_gpt(folder, record) for record in records]


def _from_human_and_gpt(folder: Path, record: dict[str, Any]) -> Loaded:
    image, turns = record.get("image", []), record["conversations"]
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
    paths = image if isinstance(image, list) else [image]
    return _loaded(folder, paths, [turn["value"] for turn in turns])


def read_llama_factory(folder: Path, name: str) -> list[Loaded]:
    """LLaMA-Factory by dataset_info.json, and ms-swift, which reads the same lines without it."""
    info = json.loads((folder / "dataset_info.json").read_bytes())
    entry = info[f"prefect_imageqa_{name.partition('.')[0].replace('-', '_')}"]
    assert entry["file_name"] == name
    assert entry["formatting"] == "sharegpt"
    columns, tags = entry["columns"], entry["tags"]
    loaded = []
    for line in (folder / name).read_text().splitlines():
        record = json.loads(line)
        messages, images = record[columns["messages"]], record[columns["images"]]
        roles = [message[tags["role_tag"]] for message in messages]
        assert roles == [tags["user_tag"], tags["assistant_tag"]] * (len(roles) // 2)
        loaded.append(_loaded(folder, images, [m[tags["content_tag"]] for m in messages]))
    return loaded


def _loaded(folder: Path, paths: Sequence[str], texts: Sequence[str]) -> Loaded:
    tags = "<image>\n" * len(paths)
    assert texts[0].startswith(tags)
    assert sum(text.count("<image>") for text in texts) == len(paths)
    texts = [texts[0].removeprefix(tags), *texts[1:]]
    colours = [colour(Image.open(folder / path)) for path in paths]
    return colours, list(zip(texts[::2], texts[1::2], strict=True))


def read_openai(folder: Path, name: str) -> list[Loaded]:
    """OpenAI's fine-tuning: parts of the user's message, data URIs, no image in an answer."""
    loaded = []
    for line in (folder / name).read_text().splitlines():
        messages = json.loads(line)["messages"]
        *parts, text = messages[0]["content"]
        assert text["type"] == "text"
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
        texts = [text["text"], *(message["content"] for message in messages[1:])]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        loaded.append(([*map(colour, images)], list(zip(texts[::2], texts[1::2], strict=True))))
    return loaded


READERS = {
    "llava": (read_llava, "train.json", "train-00000.json"),
    "qwen": (read_qwen, "train.json", "train-00000.json"),
    "sharegpt": (read_llama_factory, "train.jsonl", "train-00000.jsonl"),
    "openai": (read_openai, "train.jsonl", "train-00000.jsonl"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("several", [False, True], ids=["one image", "several images"])
def test_json_forms(
    name: Any, several: bool, make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    read, file, first_file = READERS[name]
    source = make_source([*ROWS, TWO] if several else ROWS)
    record = export(source, name)
    assert read(Path(target.uri), file) == [*EXPECTED, *[EXPECTED_TWO] * several]
    assert record.splits["train"].conversations == len(EXPECTED) + several
    assert record.splits["train"].pairs == len(EXPECTED) + several + 1
    assert record.copies == (3 if name != "openai" else 0)

    record = export(source, name, shard_size=4)
    assert read(Path(target.uri), first_file) == EXPECTED[:4]
    assert len(record.splits["train"].files) == 2
    assert not target.exists(file), "the earlier export is replaced"


def test_llava_15_wants_one_path_and_next_a_list(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    export(make_source(), "llava")
    assert {type(r["image"]) for r in json.loads(target.read("train.json"))} == {str}
    export(make_source([*ROWS, TWO]), "llava")
    assert {type(r["image"]) for r in json.loads(target.read("train.json"))} == {list}


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streaming"])
@pytest.mark.parametrize("several", [False, True], ids=["one image", "several images"])
def test_hugging_face(
    streaming: bool,
    several: bool,
    make_source: MakeSource,
    export: Export,
    target: ObjectStore,
    tmp_path: Path,
) -> None:
    source = make_source([*ROWS, TWO] if several else ROWS)
    record = export(source, "hf", shard_size=2, validation=0.5, split_seed=1)
    data = load_dataset(target.uri, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert set(data) == {"train", "validation"}
    loaded: list[Loaded] = []
    for split, counts in record.splits.items():
        rows = list(data[split])
        assert len(rows) == counts.conversations
        for row in rows:
            images = row["images"] if several else [row["image"]]
            contents = [message["content"] for message in row["messages"]]
            turns = list(zip(contents[::2], contents[1::2], strict=True))
            loaded.append(([*map(colour, images)], turns))
            single = (row["question"], row["answer"])
            assert (single == (None, None)) if len(turns) > 1 else single[0] is not None
            assert row["style"] == "short@1"
            assert row["options"] == (["red", "green"] if row["type"] == "colour" else None)
    assert sorted(loaded) == sorted([*EXPECTED, *[EXPECTED_TWO] * several])


def test_hugging_face_loads_each_of_the_exports_of_one_name(
    make_source: MakeSource, tmp_path: Path
) -> None:
    """`datasets` caches by the last name of the folder, and by the card."""
    found: list[tuple[list[str], bytes]] = []
    for number in (0, 1, 0):
        target = ObjectStore(uri=str(tmp_path / str(len(found)) / "hf"))
        source = make_source([("red.png", [{"question": f"Q{number}", "answer": "A"}])])
        write_export(source, "hf", Exports(formats=("hf",)), target)
        data = load_dataset(target.uri, split="train", cache_dir=str(tmp_path / "cache"))
        found.append((data["question"][:], target.read("README.md")))
    assert [questions for questions, _ in found] == [["Q0"], ["Q1"], ["Q0"]]
    assert found[0] == found[2], "the same content gives the same card"


def test_webdataset(make_source: MakeSource, export: Export, target: ObjectStore) -> None:
    record = export(make_source(), "webdataset", shard_size=3)
    assert record.splits["train"].files == ("train-00000.tar", "train-00001.tar")
    urls = f"{target.uri}/train-{{00000..00001}}.tar"
    loaded = []
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    for image, record_ in dataset.to_tuple("jpg;png", "json"):
        contents = [message["content"] for message in record_["messages"]]
        loaded.append(([colour(image)], list(zip(contents[::2], contents[1::2], strict=True))))
    assert loaded == EXPECTED
    files = load_dataset("webdataset", data_dir=target.uri, split="train", streaming=True)
    assert [colour(row["png"]) for row in files] == [image for [image], _ in EXPECTED]


def test_webdataset_of_several_images(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    export(make_source([TWO]), "webdataset")
    (sample,) = webdataset.WebDataset(f"{target.uri}/train-00000.tar", shardshuffle=False)
    assert sample.keys() >= {"0.png", "1.png", "json"}


def test_webdataset_of_several_images_as_it_is_documented(
    make_source: MakeSource, export: Export, target: ObjectStore
) -> None:
    def images(sample: dict[str, Any]) -> list[Image.Image]:
        keys = [key for key in sample if key.endswith((".jpg", ".png"))]
        return [sample[key] for key in sorted(keys, key=lambda key: int(key.split(".")[0]))]

    names = [["red", "blue", "green", "white"][number % 4] for number in range(12)]
    export(make_source([([f"{name}.png" for name in names], TWO[1])]), "webdataset")
    urls = f"{target.uri}/train-{{00000..00000}}.tar"
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    ((found, record),) = [(images(sample), sample["json"]) for sample in samples]
    assert [*map(colour, found)] == names
    assert record["question"] == "Which one is blue?"
