import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading import json_arrays, json_formats, long_records
from prefect_imageqa.tasks.loading.files import find_files
from prefect_imageqa.tasks.loading.json_formats import read_json_array
from prefect_imageqa.tasks.loading.tables import read_table
from prefect_imageqa.tasks.records import Problem


def read(folder: Path, text: str, name: str) -> list[Any]:
    """The records, and the messages of problems."""
    path = folder / name
    path.write_text(text)
    file_format = find_files(str(path)).format
    records = [record for _, record in read_table(str(path), name, file_format, None)]
    return [record.message if isinstance(record, Problem) else record for record in records]


def nested(chance: random.Random, depth: int) -> Any:
    """A value with everything that matters to where an item ends."""
    kind = chance.randrange(5 if depth else 2)
    if kind < 2:
        return "".join(chance.choices('a"\\[]{},:ü\n ', k=chance.randrange(12)))
    if kind == 2:
        return chance.choice([1, -2.5e-3, True, None])
    items = [nested(chance, depth - 1) for _ in range(chance.randrange(4))]
    return items if kind == 3 else {f'k"{n}]': item for n, item in enumerate(items)}


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 16])
def test_an_array_is_split_wherever_its_parts_end(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK_BYTES", size)
    chance = random.Random(size)
    for _ in range(60):
        values = [{"x": nested(chance, 4)} for _ in range(chance.randrange(5))]
        text = json.dumps(values, indent=chance.choice([None, 1]), ensure_ascii=False)
        file = io.BufferedReader(io.BytesIO(f" {text} \n".encode()))
        rows = read_json_array(file)  # type: ignore[arg-type] # that of an open file
        assert [record for _, record in rows] == values


def test_an_invalid_item_costs_its_row(tmp_path: Path) -> None:
    text = (
        '[{"image": "a"}, {"image": "b" x}, {"image": \'c\'}, , {"image": "\t"}, {"image": "d"},]'
    )
    first, *problems, last = read(tmp_path, text, "d.json")
    assert (first, last) == ({"image": "a"}, {"image": "d"})
    assert [problem[:29] for problem in problems] == [
        f"record {index} (from 0) is not JSON"[:29] for index in range(1, 5)
    ]


@pytest.mark.parametrize("text", ['[{"a": 1}] x', '[{"a": 1}]\n[{"a": 2}]'])
def test_nothing_may_follow_an_array(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="after 1 rows: there is text after the end of the arr"):
        read(tmp_path, text, "d.json")


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("d.jsonl", "{good}\n{long}\n{good}\n", "line 2"),
        ("d.jsonl", "{good}\n{long}", "line 2"),
        ("d.json", "{long}\n{good}\n", "line 1"),
        ("d.json", "[{good}, {long}, {good}]", "record 1 (from 0)"),
    ],
    ids=["lines", "last-line", "first-line-of-json", "array"],
)
def test_a_record_that_is_too_long_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, what: str
) -> None:
    monkeypatch.setattr(long_records, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(json_arrays, "MAX_RECORD_BYTES", 1 << 20)
    good = '{"image": "a"}'
    long = json.dumps({"image": "x\\" * (1 << 20)})
    rows = read(tmp_path, text.replace("{good}", good).replace("{long}", long), name)
    good_rows = [row for row in rows if row == {"image": "a"}]
    (problem,) = [row for row in rows if row != {"image": "a"}]
    assert len(good_rows) == text.count("{good}")
    assert problem == (
        f"{what} has 3 MB, and a record may have 1 MB; keep large images in files, "
        "and refer to them"
    )


def test_a_record_of_too_many_values_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_formats, "_MAX_VALUES", 1000)
    text = f'{{"x": [{",".join(["[]"] * 1000)}]}}\n{{"x": "{"," * 900}"}}\n'
    problem, good = read(tmp_path, text, "d.jsonl")
    assert problem == "line 1 is not JSON: more than 1,000 values"
    assert good == {"x": "," * 900}


COCO = {"info": {}, "images": [{"id": 0, "file_name": "0.jpg"}] * 3000, "annotations": [{"id": 0}]}
GQA = {
    f"n0{i}": {"imageId": str(i), "question": "q?", **({"group": i} if i % 2 else {})}
    for i in range(2000)
}
INDEX = [str(i) for i in range(5000)]
ROWS = {i: {"image": "a", "text": "b" * 20} for i in INDEX}
VQA = {"info": {}, "questions": [{"image_id": 1, "question": "q?", "question_id": 2}]}


@pytest.mark.parametrize("indent", [None, 1], ids=["line", "pretty"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (COCO, "COCO annotations: one JSON object, not a list of records; write them as JSON lin"),
        (VQA, "VQA questions: one JSON object, not a list of records; write them as JSON lines: "),
        ({"image": {"0": "a", "1": "b"}, "id": {"0": 0, "1": 1}}, "pandas' to_json() writes it:"),
        ({"0": {"image": "a", "n": 1}, "1": {"image": "b", "n": 2}}, "('FILE', orient='index')"),
        ({"columns": ["image"], "index": [0], "data": [["a"]]}, "('FILE', orient='split').to_js"),
        ({"image": dict.fromkeys(INDEX, "a.png"), "id": dict.fromkeys(INDEX)}, "read_json('FILE')"),
        (
            {"image": dict.fromkeys(INDEX[:3000], "a"), "id": dict.fromkeys(INDEX[:3000])},
            "read_json('FILE')",
        ),
        (ROWS, "read_json('FILE', orient='index')"),
        (
            {"columns": ["image"], "index": list(range(20_000)), "data": [["a"]] * 20_000},
            "read_json('FILE', orient='split')",
        ),
        (GQA, "{'id': i, **r})) for i, r in json.load(open('FILE')).items()]\" > rows.jsonl"),
        ({"a": {"image": "x"}, "b": {"image": "y"}}, "{'id': i, **r}))"),
        (
            {"name": "docvqa", "data": [{"image": "a"}]},
            "not a list of records, which are in its 'd",
        ),
        ({"annotations": [{"question_id": 1}]}, "in its 'annotations'; write them as JSON lines: "),
    ],
    ids=[
        *("coco", "vqa", "columns", "index", "split", "long-column", "long-columns", "long-index"),
        *("long-split", "long-ids", "ids", "data", "annotations"),
    ],
)
def test_one_object_that_is_a_table_is_named(
    tmp_path: Path, value: Any, what: str, indent: int | None
) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, json.dumps(value, indent=indent), "d.json")
    assert what in str(caught.value)
    assert "not a list of records" in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png"},
        {"image": {"bytes": None, "path": "a.png"}},
        {"messages": [{"role": "user", "content": "x"}], "images": ["a.png"]},
        {"image": "a.png", "annotations": [{"box": [1, 2]}]},
        {"images": [{"path": "a.png"}]},
        {"image": {"path": "a.png"}, "question": {"text": "q"}, "meta": {"id": 1}},
        {"image_path": "a.png", **{f"meta{n}": {"id": n} for n in range(9000)}},
    ],
)
def test_one_object_on_one_line_may_be_the_only_record(tmp_path: Path, record: Any) -> None:
    assert read(tmp_path, json.dumps(record), "d.json") == [record]


def test_requests_of_an_openai_batch_give_their_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What?"}]
    request = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    other = {**request, "body": {"input": "x"}}
    text = "\n".join(map(json.dumps, [{**request, "body": body}, other]))
    assert read(tmp_path, text, "d.jsonl") == [{"custom_id": "r1", "messages": messages}, other]
    (note,) = find_files(str(tmp_path / "d.jsonl")).notes
    assert note.startswith(
        "d.jsonl: of an OpenAI batch, custom_id and messages are read; the model"
    )


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('{"image": "a"}\n'.encode("utf-16"))
    with pytest.raises(DatasetError, match="it is UTF-16 text; save it as UTF-8"):
        list(read_table(str(tmp_path / name), name, name[2:], None))
