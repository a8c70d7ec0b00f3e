"""The layouts in which datasets are published are read as they are: what is asked about each row.

`pytest tests/flows/test_layouts.py -s` prints the table of what a model server receives.
"""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_imageqa import Parsing, image_qa
from servers import StubServer
from stub_server import DEFAULT_TEXT

DEFAULT = "Please construct a QA pair based on the content in the image."


def png(side: int = 8, color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def data_uri() -> str:
    return f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def human(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "No."}]


def save_json(folder: Path, records: list[Any]) -> Path:
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").write_bytes(png(9))
    (folder / "d.json").write_text(json.dumps(records))
    return folder / "d.json"


def save_lines(folder: Path, records: list[Any], name: str = "d.jsonl") -> Path:
    save_json(folder, [])
    (folder / "d.json").unlink()
    (folder / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder / name


def llava(folder: Path) -> Path:
    text_only = {"id": "2", "conversations": human("Without an image?")}
    image = {"id": "1", "image": "a.png", "conversations": human("<image>\nIs it red?")}
    several = {"id": "3", "image": ["a.png", "b.png"], "conversations": human("Both?")}
    return save_json(folder, [text_only, image, several])


def sharegpt(folder: Path) -> Path:
    turns = [{"role": "user", "content": "<image><image>Same?"}]
    return save_lines(folder, [{"messages": turns, "images": ["a.png", "b.png"]}])


def openai(folder: Path) -> Path:
    parts = [
        {"type": "text", "text": "Is it red?"},
        {"type": "image_url", "image_url": {"url": data_uri()}},
    ]
    system = {"role": "system", "content": "Be brief."}
    return save_lines(folder, [{"messages": [system, {"role": "user", "content": parts}]}])


def qwen(folder: Path) -> Path:
    def ask(image: str) -> dict[str, Any]:
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "Is it red?"}]
        return {"messages": [{"role": "user", "content": parts}]}

    return save_json(folder, [ask("a.png"), ask("file:///etc/passwd")])


def openai_batch(folder: Path) -> Path:
    parts = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": "Is it red?"},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return save_lines(folder, [line])


def image_folder(folder: Path) -> Path:
    records = [{"file_name": "a.png", "question": "Is it red?"}, {"file_name": "b.png"}]
    return save_lines(folder, records, "metadata.jsonl").parent


def image_folder_csv(folder: Path) -> Path:
    (folder / "train").mkdir()
    save_lines(folder / "train", [], "metadata.csv")
    (folder / "train" / "metadata.csv").write_text("file_name,question\nb.png,Is it red?\n")
    return folder


def cauldron(folder: Path) -> Path:
    images = [[{"bytes": png(), "path": None}, {"bytes": png(9), "path": "b.png"}]]
    for number, asked in enumerate(("Two?", "Three?")):
        turns = [[{"user": "One?", "assistant": "1"}, {"user": asked, "assistant": "2"}]]
        table = pa.table({"images": images, "texts": turns})
        pq.write_table(table, folder / f"train-{number}.parquet")
    return folder


def parquet_types(folder: Path) -> Path:
    images = pa.array([png(), png(9)], pa.large_binary()).dictionary_encode()
    asked = pa.array(["One?", "Two?"]).dictionary_encode()
    pq.write_table(pa.table({"image": images, "question": asked}), folder / "d.parquet")
    return folder / "d.parquet"


def shard(path: Path, first: str, second: str) -> None:
    with tarfile.open(path, "w") as tar:
        for key, asked in (("000", first), ("001", second)):
            meta = json.dumps({"question": asked, "id": key}).encode()
            for name, data in ((f"{key}.png", png()), (f"{key}.json", meta)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def webdataset(folder: Path) -> Path:
    shard(folder / "train-000000.tar", "Is it red?", "Is it blue?")
    shard(folder / "train-000001.tar", "How many?", "Where?")
    return folder / "train-*.tar"


def vlmevalkit(folder: Path) -> Path:
    image = base64.b64encode(png()).decode()
    rows = f"index\timage\tquestion\tanswer\n0\t{image}\tIs it red?\tyes\n"
    (folder / "bench.tsv").write_text(rows)
    return folder / "bench.tsv"


def pandas_csv(folder: Path) -> Path:
    path = save_json(folder, []).with_name("d.csv")
    frame = pd.DataFrame({"images": [["a.png", "b.png"]], "conversations": [human("Same?")]})
    frame.to_csv(path, index=False)
    return path


def numpy_csv(folder: Path) -> Path:
    path = save_json(folder, []).with_name("d.csv")
    turns = np.array(human("Same?"), dtype=object)
    frame = pd.DataFrame({"images": [np.array(["a.png", "b.png"])], "conversations": [turns]})
    frame.to_csv(path, index=False)
    return path


def own_questions(folder: Path) -> Path:
    records = [
        {"image": "a.png", "questions": ["Is it red?", "Is it blue?"]},
        {"image": "b.png", "questions": ["How many?"]},
    ]
    return save_json(folder, records)


Asked = list[tuple[str, int]]
"""The last user text and the number of images of each request, sorted."""

LAYOUTS: dict[str, tuple[Callable[[Path], Path], Asked]] = {
    "LLaVA": (llava, [("Both?", 2), ("Is it red?", 1)]),
    "ShareGPT, ms-swift": (sharegpt, [("Same?", 2)]),
    "OpenAI messages": (openai, [("Is it red?", 1)]),
    "Qwen messages": (qwen, [("Is it red?", 1)]),
    "OpenAI batch": (openai_batch, [("Is it red?", 1)]),
    "ImageFolder": (image_folder, [(DEFAULT, 1), ("Is it red?", 1)]),
    "ImageFolder, CSV": (image_folder_csv, [("Is it red?", 1)]),
    "Cauldron, FineVision": (cauldron, [("Three?", 2), ("Two?", 2)]),
    "Parquet, dictionaries": (parquet_types, [("One?", 1), ("Two?", 1)]),
    "WebDataset": (
        webdataset,
        [("How many?", 1), ("Is it blue?", 1), ("Is it red?", 1), ("Where?", 1)],
    ),
    "VLMEvalKit": (vlmevalkit, [("Is it red?", 1)]),
    "CSV of pandas": (pandas_csv, [("Same?", 2)]),
    "CSV of arrays": (numpy_csv, [("Same?", 2)]),
    "own questions": (own_questions, [("How many?", 1), ("Is it blue?", 1), ("Is it red?", 1)]),
}
ON_S3 = ("ImageFolder", "WebDataset", "Cauldron, FineVision")
QUARANTINED = {"LLaVA": "no_image", "Qwen messages": "image_refused"}


@pytest.fixture(scope="module")
def recorder(start_stub: Callable[..., StubServer]) -> StubServer:
    return start_stub()


def asked_since(recorder: StubServer, start: int) -> Asked:
    """What the stub was asked; it keeps the last 64 requests."""
    stats = recorder.stats()
    count = stats["requests"] - start
    requests: Asked = []
    for body in list(stats["bodies"])[-count:] if count else []:
        content = body["messages"][-1]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        turns = [turn["content"] for turn in body["messages"]]
        parts = [part for turn in turns if isinstance(turn, list) for part in turn]
        requests.append((text, sum(part["type"] == "image_url" for part in parts)))
    return sorted(requests)


@pytest.mark.parametrize(
    ("layout", "place"),
    [*((layout, "local") for layout in LAYOUTS), *((layout, "s3") for layout in ON_S3)],
)
def test_a_layout_is_read_as_it_is(
    layout: str, place: str, recorder: StubServer, tmp_path: Path, request: Any
) -> None:
    build, expected = LAYOUTS[layout]
    (tmp_path / "data").mkdir()
    dataset = str(build(tmp_path / "data"))
    if place == "s3":
        bucket = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        fsspec.filesystem("s3").put(f"{tmp_path}/data/", f"{bucket}/data/", recursive=True)
        dataset = dataset.replace(str(tmp_path), bucket)
    start = recorder.stats()["requests"]
    summary = image_qa(
        dataset, str(tmp_path / "out"), recorder.url, parsing=Parsing(parser="answer")
    )
    asked = asked_since(recorder, start)
    print(f"{layout} ({place}): {summary.rows} rows, asked {asked}, {dict(summary.reasons)}")
    assert asked == sorted(expected)
    failed = [QUARANTINED[layout]] if layout in QUARANTINED else []
    assert list(summary.reasons) == failed
    table = pq.read_table(tmp_path / "out" / "pairs.parquet", columns=["question", "answer"])
    pairs = table.to_pylist()
    assert sorted(pair["question"] for pair in pairs) == [text for text, _ in asked]
    assert {pair["answer"] for pair in pairs} == {DEFAULT_TEXT}
