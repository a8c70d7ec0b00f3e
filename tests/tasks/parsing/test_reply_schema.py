"""A user's JSON schema is checked before any request is sent with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.parsing.reply_schema import MAX_SCHEMA_BYTES, read_reply_schema

PAIR = {"type": "object", "properties": {"question": {}, "answer": {"type": "string"}}}


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "schema.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("schema", "questions_only"),
    [
        pytest.param(PAIR, False, id="a pair"),
        pytest.param(
            {"type": "array", "items": {"$ref": "#/$defs/p"}, "$defs": {"p": PAIR}}, False
        ),
        pytest.param({"properties": {"Question 1": {}, "Answer 1": {}}}, False, id="numbered"),
        pytest.param({"properties": {"问题": {}, "答案": {}}}, False, id="another language"),
        pytest.param({"properties": {"correct": {"enum": ["A", "B"]}}}, False, id="a choice"),
        pytest.param({"properties": {"questions": {"type": "array"}}}, True, id="questions only"),
    ],
)
def test_a_schema_of_what_the_parser_reads_is_accepted(
    schema: dict[str, Any], questions_only: bool, tmp_path: Path
) -> None:
    path = write(tmp_path, json.dumps(schema))
    assert read_reply_schema(path, questions_only=questions_only) == schema


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"minimum": NaN}', "is not JSON (NaN is no JSON value)"),
        (b"\x80\x81", "is not JSON"),
        ("[" * 30_000, "is not JSON"),
        ("[]", "must be a JSON object"),
        (" " * (MAX_SCHEMA_BYTES + 1), "is larger than the 32 KiB"),
        ('{"properties": {"answer": {"type": "s3cr3t"}}}', "(at properties.answer.type: it must"),
        ('{"properties": "s3cr3t"}', "is no JSON schema (at properties: it must have type object)"),
        ('{"$schema": ["s3cr3t"]}', "is no JSON schema (at $schema: it must be text)"),
        ('{"$schema": {}}', "is no JSON schema (at $schema: it must be text)"),
        ('{"properties": {"score": {}}}', "it has no property 'answer', at any level"),
    ],
)
def test_any_other_file_is_refused_in_one_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ImageQAError) as refused:
        read_reply_schema(path)
    assert message in str(refused.value)
    assert path in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "s3cr3t" not in str(refused.value)


def test_a_mistyped_format_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ImageQAError, match=r"there is no format '.*jsno'.* give text, json, or"):
        read_reply_schema(str(tmp_path / "jsno"))


def test_a_schema_is_read_from_s3(s3: str) -> None:
    ObjectStore(uri=f"{s3}/schemas").write("pair.json", json.dumps(PAIR).encode())
    assert read_reply_schema(f"{s3}/schemas/pair.json") == PAIR
