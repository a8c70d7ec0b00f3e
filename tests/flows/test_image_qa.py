"""The flow with a stub of vLLM: what it makes of rows, and of mistakes in its parameters."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect_imageqa import (
    Columns,
    Exports,
    ImageQAError,
    Limits,
    Parsing,
    VLLMEndpoint,
    image_qa,
)
from prefect_imageqa.serving.client.retry_policy import MAX_ATTEMPTS
from prefect_imageqa.serving.types import FailureKind
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.chat import chat_prompt
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import QAPair


def turn(text: str) -> list[dict[str, str]]:
    """A conversation of one turn."""
    return [{"from": "human", "value": text}]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def png_bomb() -> bytes:
    """A PNG whose header declares 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.usefixtures("with_report")
def test_hostile_rows_do_not_affect_other_rows(stub: Any, drawn: Path, tmp_path: Path) -> None:
    good = (drawn / "images" / "000.png").read_bytes()
    hostile = {
        "missing.png": None,
        "text.png": b"not an image at all",
        "truncated.png": good[: len(good) // 2],
        "bomb.png": png_bomb(),
        "empty.png": b"",
    }
    for name, data in hostile.items():
        if data is not None:
            (drawn / "images" / name).write_bytes(data)
    rows = json.loads((drawn / "dataset.json").read_text())
    mixed = [
        line
        for row, name in zip(rows, [*hostile, *[None] * len(rows)], strict=False)
        for line in ([json.dumps({"image": f"images/{name}"})] if name else []) + [json.dumps(row)]
    ]
    mixed.insert(3, '{"image": broken')
    mixed.append(json.dumps({"note": "no image here"}))
    mixed.append(
        json.dumps({"image": "images/000.png", "conversation": turn("<image> or <image>?")})
    )
    dataset = drawn / "mixed.jsonl"
    dataset.write_text("\n".join(mixed) + "\n")

    summary = image_qa(
        str(dataset),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=4),
        exports=Exports(json_array=True),
    )

    assert (summary.rows, summary.ok, summary.quarantined) == (len(mixed), len(rows), 8)
    assert summary.reasons == {
        "image_missing": 1,
        "not_an_image": 2,
        "image_broken": 1,
        "image_too_large": 1,
        "bad_row": 2,
        "no_image": 1,
    }
    answered = read_lines(tmp_path / "out" / "qa.jsonl")
    assert [row["image"] for row in answered] == [row["image"] for row in rows]
    assert all(row["output"].startswith("**Question:**") for row in answered)
    assert json.loads((tmp_path / "out" / "qa.json").read_text()) == answered
    quarantined = read_lines(tmp_path / "out" / "quarantine.jsonl")
    assert [row["row"] for row in quarantined] == sorted(row["row"] for row in quarantined)
    assert next(row["where"] for row in quarantined if row["kind"] == "bad_row") == "mixed.jsonl:4"
    assert all(row["message"] for row in quarantined)
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    bad = {row["row"] for row in quarantined}
    assert [pair["row"] for pair in pairs] == [row for row in range(len(mixed)) if row not in bad]
    assert summary.to_pandas()["output"].tolist() == [row["output"] for row in answered]


def test_the_second_run_sends_only_missing_rows(stub: Any, drawn: Path, tmp_path: Path) -> None:
    dataset, output = drawn / "dataset.json", str(tmp_path / "out")
    rows = json.loads(dataset.read_text())
    dataset.write_text(json.dumps(rows[:7]))
    assert image_qa(str(dataset), output, endpoint=stub.url).requests == 7

    dataset.write_text(json.dumps(rows))
    grown = image_qa(
        str(dataset), output, endpoint=stub.url, limits=Limits(batch_size=3, max_in_flight=5)
    )
    assert (grown.requests, grown.reused, grown.ok) == (5, 7, 12)
    again = image_qa(str(dataset), output, endpoint=stub.url)
    assert (again.requests, again.reused, again.ok) == (0, 12, 12)
    assert [row["image"] for row in read_lines(tmp_path / "out" / "qa.jsonl")] == [
        row["image"] for row in rows
    ]
    other = image_qa(str(dataset), output, endpoint=stub.url, system_prompt="Be brief.")
    assert (other.requests, other.ok) == (12, 12)
    back = image_qa(str(dataset), output, endpoint=stub.url)
    assert (back.requests, back.ok) == (0, 12)


def test_the_number_of_pairs_is_in_the_prompt(stub: Any, drawn: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")]})
    for pairs, text in ((1, "construct a QA pair"), (3, "construct 3 QA pairs")):
        image_qa(frame, str(tmp_path / "out"), endpoint=stub.url, pairs_per_image=pairs)
        assert text in str(stub.stats()["bodies"][-1]["messages"])
    image_qa(frame, str(tmp_path / "out"), stub.url, pairs_per_image=3, user_prompt="Which?")
    assert stub.stats()["bodies"][-1]["messages"][-1]["content"][-1]["text"] == "Which?"


NO_ANSWERS = {
    "STUB text  ": "empty",
    "STUB text <think>a cat?</think>": "empty",
    "STUB text It shows a cat.": "unparsed",
    "STUB finish length": "truncated",
    "STUB finish content_filter": "truncated",
    "STUB status 400": "bad_request",
    "STUB status 500": "server_error",
    "STUB raw <html>": "server_error",
}


@pytest.mark.usefixtures("quick_retries")
def test_rows_without_an_answer_are_quarantined(stub: Any, drawn: Path, tmp_path: Path) -> None:
    texts = ["Hello", *NO_ANSWERS, "Hello again"]
    image = str(drawn / "images" / "000.png")
    frame = pd.DataFrame({"image": image, "conversation": [turn(text) for text in texts]})
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.quarantined) == (2, len(NO_ANSWERS))
    failed = read_lines(tmp_path / "out" / "quarantine.jsonl")
    assert {texts[row["row"]]: row["kind"] for row in failed} == NO_ANSWERS
    assert [row["where"] for row in failed] == [f"DataFrame[{row}]" for row in range(1, 9)]
    assert failed[2]["text"] == "It shows a cat."
    assert len(read_lines(tmp_path / "out" / "qa.jsonl")) == 2


def test_raw_text_is_the_answer_if_no_pairs_are_required(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    image = str(drawn / "images" / "000.png")
    frame = pd.DataFrame({"image": [image], "conversation": [turn("STUB text It shows a cat.")]})
    summary = image_qa(
        frame, str(tmp_path / "out"), endpoint=stub.url, parsing=Parsing(require_pairs=False)
    )
    assert (summary.ok, summary.pairs) == (1, 0)
    assert read_lines(tmp_path / "out" / "qa.jsonl")[0]["output"] == "It shows a cat."


def test_duplicate_rows_are_sent_once(stub: Any, drawn: Path, tmp_path: Path) -> None:
    images = [str(drawn / "images" / f"{n:03}.png") for n in (0, 1, 0, 0)]
    frame = pd.DataFrame({"image": images, "id": [1, 2, 3, 4]})
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url, limits=Limits(batch_size=2))
    assert (summary.requests, summary.ok, summary.reused, summary.duplicates) == (2, 4, 0, 2)
    assert [row["id"] for row in read_lines(tmp_path / "out" / "qa.jsonl")] == [1, 2, 3, 4]


def test_max_rows_takes_the_first_rows(stub: Any, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = image_qa(str(drawn / "dataset.json"), str(out), endpoint=stub.url, max_rows=5)
    assert (summary.rows, summary.requests) == (5, 5)
    assert len(read_lines(out / "qa.jsonl")) == 5


@pytest.mark.usefixtures("with_report")
def test_dataset_images_and_output_on_s3(stub: Any, s3: str, drawn: Path) -> None:
    bucket = ObjectStore(uri=f"{s3}/flow")
    for path in sorted(drawn.rglob("*.*")):
        bucket.write(f"data/{path.relative_to(drawn)}", path.read_bytes())
    dataset, output = f"{s3}/flow/data/dataset.json", f"{s3}/flow/out"
    summary = image_qa(dataset, output, endpoint=stub.url, limits=Limits(batch_size=5))
    assert (summary.ok, summary.requests) == (12, 12)
    assert len(summary.to_pandas()) == 12
    assert image_qa(dataset, output, endpoint=stub.url).requests == 0
    names = ObjectStore(uri=output).list("")
    assert {"qa.jsonl", "pairs.parquet", "manifest.json"} <= set(names)


@pytest.mark.usefixtures("with_report")
def test_neither_cells_of_a_frame_nor_keys_reach_the_database(
    keyed_stub: Any, drawn: Path, tmp_path: Path, runs_of: Callable[..., Any]
) -> None:
    frame = pd.DataFrame({"image": [(drawn / "images" / "000.png").read_bytes()], "x": ["cell-7"]})
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=endpoint)
    assert summary.ok == 1
    stored = read_lines(tmp_path / "out" / "qa.jsonl")[0]
    assert stored["x"] == "cell-7"
    assert stored["image"]["path"] == "row-000000"
    [run] = runs_of(tmp_path / "out")
    parameters = str(run.parameters)
    assert "DataFrame" in parameters
    assert "cell-7" not in parameters
    assert keyed_stub.api_key not in parameters
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if keyed_stub.api_key.encode() in path.read_bytes()]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "dataset missing": ({"dataset": "nowhere.json"}, "nowhere.json"),
    "no image column": ({"columns": Columns(image="picture")}, "image, conversation"),
    "no such model": ({"model": "gpt-5"}, "does not serve 'gpt-5'"),
    "no server": ({"endpoint": "http://127.0.0.1:9"}, "no server answers at http://127.0.0.1:9"),
    "no endpoint": ({"endpoint": None}, "no model to ask"),
    "no such block": ({"endpoint": "no-such-block"}, "no-such-block"),
    "column taken": ({"columns": Columns(output="image")}, "'image'"),
    "unknown parser": ({"parsing": Parsing(parser="nope")}, "qa_pairs"),
    "unknown style": ({"style": "os.path:nope"}, "chat"),
    "ftp output": ({"output": "ftp://host/out"}, "ftp:// is not supported"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_before_any_work(
    mistake: str,
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed, expected = MISTAKES[mistake]
    output = tmp_path / "out"
    arguments: dict[str, Any] = {
        "dataset": str(drawn / "dataset.json"),
        "output": str(output),
        "endpoint": stub.url,
    }
    before = stub.stats()["requests"]
    with pytest.raises(ImageQAError) as raised:
        image_qa(**(arguments | changed))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in caplog.text
    assert not output.exists()
    assert stub.stats()["requests"] == before


def test_a_wrong_key_is_reported_in_one_line(keyed_stub: Any, drawn: Path, tmp_path: Path) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key="wrong-key")
    with pytest.raises(ImageQAError, match="rejects the API key") as raised:
        image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=endpoint)
    assert "wrong-key" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick_retries")
def test_the_next_run_resumes_after_the_server_died(
    start_stub: Callable[..., Any],
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = sorted((drawn / "images").iterdir())
    conversations = [turn(f"row {n}") for n in range(12)]
    conversations[8] = turn("STUB die")
    frame = pd.DataFrame({"image": [str(path) for path in images], "conversation": conversations})
    mortal = start_stub()
    with pytest.raises(ImageQAError, match=r"does not answer.*: waited 1 s"):
        image_qa(
            frame,
            str(tmp_path / "out"),
            endpoint=mortal.url,
            limits=Limits(batch_size=2, max_in_flight=1, server_wait=1),
        )
    assert "Traceback" not in caplog.text
    stored = sum(pq.read_metadata(part).num_rows for part in (tmp_path / "out").rglob("*.parquet"))
    assert stored >= 6
    conversations[8] = turn("row 8")
    frame = frame.assign(conversation=pd.Series(conversations))
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.reused, summary.requests) == (12, stored, 12 - stored)


def shout(text: str) -> list[QAPair]:
    return [QAPair("What?", text.upper())]


def test_a_custom_parser_reads_stored_completions(stub: Any, drawn: Path, tmp_path: Path) -> None:
    dataset, output = str(drawn / "dataset.json"), str(tmp_path / "out")
    image_qa(dataset, output, endpoint=stub.url, max_rows=2)
    summary = image_qa(
        dataset, output, endpoint=stub.url, max_rows=2, parsing=Parsing(parser=shout)
    )
    assert (summary.requests, summary.pairs) == (0, 2)
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert pairs[0]["answer"].startswith("**QUESTION:**")


def test_a_folder_of_images_is_a_dataset(stub: Any, drawn: Path, tmp_path: Path) -> None:
    folder = drawn / "images"
    shutil.copy(folder / "000.png", folder / "same-as-000.png")
    summary = image_qa(str(folder), str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.requests) == (13, 12)


def test_the_next_run_sends_only_transient_failures(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_ATTEMPTS, FailureKind.TIMEOUT, 1)
    texts = ["STUB once 504", "STUB finish length", "STUB text no pair", "Hello"]
    frame = pd.DataFrame(
        {
            "image": [str(drawn / "images" / "000.png")] * 4,
            "conversation": [turn(f"{text} {tmp_path.name}") for text in texts],
        }
    )
    output = str(tmp_path / "out")
    first = image_qa(frame, output, endpoint=stub.url)
    assert first.reasons == {"timeout": 1, "truncated": 1, "unparsed": 1}
    second = image_qa(frame, output, endpoint=stub.url)
    assert (second.requests, second.ok, second.reused) == (1, 2, 1)
    assert second.reasons == {"truncated": 1, "unparsed": 1}


def test_a_row_that_has_the_output_column_is_quarantined(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    rows = [{"image": "images/000.png"}] * 100 + [{"image": "images/001.png", "output": "mine"}]
    (drawn / "late.json").write_text(json.dumps(rows))
    summary = image_qa(str(drawn / "late.json"), str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.reasons) == (100, {"bad_row": 1})


def test_an_output_inside_the_folder_of_images_is_rejected(stub: Any, drawn: Path) -> None:
    with pytest.raises(ImageQAError, match="is inside the dataset's folder"):
        image_qa(str(drawn / "images"), str(drawn / "images" / "out"), endpoint=stub.url)
    assert not (drawn / "images" / "out").exists()


def test_a_dataset_that_changes_during_the_run_fails_it(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    dataset = drawn / "dataset.json"
    rows = json.loads(dataset.read_text())

    def change(row: PromptInput) -> list[dict[str, Any]]:
        dataset.write_text(json.dumps([{"image": "images/005.png"}, *rows]))
        return chat_prompt(row)

    delegating_style.__dict__["delegate"] = change
    output = str(tmp_path / "out")
    with pytest.raises(ImageQAError, match="changed during the run"):
        image_qa(str(dataset), output, endpoint=stub.url, style=delegating_style)
    assert not (tmp_path / "out" / "qa.jsonl").exists()
    assert image_qa(str(dataset), output, endpoint=stub.url).ok == 13


def test_rows_appended_during_the_run_are_left_to_the_next_run(
    stub: Any, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, output = drawn / "dataset.json", str(tmp_path / "out")
    rows = json.loads(dataset.read_text())

    def append(row: PromptInput) -> list[dict[str, Any]]:
        dataset.write_text(json.dumps([*rows, {"image": "images/005.png", "conversation": "New?"}]))
        return chat_prompt(row)

    delegating_style.__dict__["delegate"] = append
    first = image_qa(str(dataset), output, endpoint=stub.url, style=delegating_style)
    assert (first.rows, first.ok) == (12, 12)
    answers = read_lines(tmp_path / "out" / "qa.jsonl")
    assert [row["image"] for row in answers] == [row["image"] for row in rows]
    grew = [line for line in caplog.messages if "grew" in line]
    assert grew == ["the dataset grew by 1 row during the run: run again for the new rows"]

    caplog.clear()
    second = image_qa(str(dataset), output, endpoint=stub.url, style=delegating_style)
    assert (second.rows, second.ok, second.reused) == (13, 13, 12)
    assert read_lines(tmp_path / "out" / "qa.jsonl")[-1]["conversation"] == "New?"
    assert "grew" not in caplog.text


def delegating_style(row: PromptInput) -> list[dict[str, Any]]:
    """A style that calls the function the test has set."""
    messages: list[dict[str, Any]] = delegating_style.__dict__["delegate"](row)
    return messages


def test_with_options_keeps_cells_out_of_the_database_too(
    stub: Any, drawn: Path, tmp_path: Path, runs_of: Callable[..., Any]
) -> None:
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")], "x": ["cell-9"]})
    renamed = image_qa.with_options(name="image-qa-renamed")
    assert renamed(frame, str(tmp_path / "out"), endpoint=stub.url).ok == 1
    [run] = runs_of(tmp_path / "out")
    assert "cell-9" not in str(run.parameters)
