"""The flow against a stub of vLLM: what becomes of every row, and of every mistake."""

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
from prefect.client.orchestration import get_client
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
from prefect_imageqa.tasks.prompting.prompts import (
    PromptInput,
    chat_prompt,
)
from prefect_imageqa.tasks.records import QAPair


def say(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def png_bomb() -> bytes:
    """A PNG that says it has 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_hostile_rows_cost_only_themselves(stub: Any, drawn: Path, tmp_path: Path) -> None:
    good = (drawn / "images" / "000.png").read_bytes()
    hostile = {
        "missing.png": None,
        "text.png": b"not an image at all",
        "cut.png": good[: len(good) // 2],
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
        json.dumps({"image": "images/000.png", "conversation": say("<image> or <image>?")})
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
    kept = [number for number in range(len(mixed)) if number not in {q["row"] for q in quarantined}]
    assert [pair["row"] for pair in pairs] == kept
    assert summary.to_pandas()["output"].tolist() == [row["output"] for row in answered]


def test_the_second_run_asks_only_what_is_missing(stub: Any, drawn: Path, tmp_path: Path) -> None:
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


def test_the_number_of_pairs_is_asked_for(stub: Any, drawn: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")]})
    for pairs, told in ((1, "construct a QA pair"), (3, "construct 3 QA pairs")):
        image_qa(frame, str(tmp_path / "out"), endpoint=stub.url, pairs_per_image=pairs)
        assert told in str(stub.stats()["bodies"][-1]["messages"])
    image_qa(frame, str(tmp_path / "out"), stub.url, pairs_per_image=3, user_prompt="Which?")
    assert stub.stats()["bodies"][-1]["messages"][-1]["content"][-1]["text"] == "Which?"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("STUB text  ", "empty"),
        ("STUB text <think>a cat?</think>", "empty"),
        ("STUB text It shows a cat.", "unparsed"),
        ("STUB finish length", "truncated"),
        ("STUB finish content_filter", "truncated"),
        ("STUB status 400", "bad_request"),
        ("STUB status 500", "server_error"),
        ("STUB raw <html>", "server_error"),
    ],
)
def test_what_is_no_answer_is_quarantined(
    said: str, kind: str, stub: Any, drawn: Path, tmp_path: Path
) -> None:
    frame = pd.DataFrame(
        {
            "image": [str(drawn / "images" / f"{n:03}.png") for n in range(3)],
            "conversation": [say("Hello"), say(said), say("Hello again")],
        }
    )
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.quarantined, summary.reasons) == (2, 1, {kind: 1})
    [failed] = read_lines(tmp_path / "out" / "quarantine.jsonl")
    assert (failed["row"], failed["where"]) == (1, "DataFrame[1]")
    if said.startswith("STUB text It"):
        assert failed["text"] == "It shows a cat."
    assert len(read_lines(tmp_path / "out" / "qa.jsonl")) == 2


def test_raw_text_is_the_answer_where_no_pairs_are_required(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    image = str(drawn / "images" / "000.png")
    frame = pd.DataFrame({"image": [image], "conversation": [say("STUB text It shows a cat.")]})
    summary = image_qa(
        frame, str(tmp_path / "out"), endpoint=stub.url, parsing=Parsing(require_pairs=False)
    )
    assert (summary.ok, summary.pairs) == (1, 0)
    assert read_lines(tmp_path / "out" / "qa.jsonl")[0]["output"] == "It shows a cat."


def test_a_row_that_stands_twice_is_asked_once(stub: Any, drawn: Path, tmp_path: Path) -> None:
    images = [str(drawn / "images" / f"{n:03}.png") for n in (0, 1, 0, 0)]
    frame = pd.DataFrame({"image": images, "id": [1, 2, 3, 4]})
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url, limits=Limits(batch_size=2))
    assert (summary.requests, summary.ok, summary.reused) == (2, 4, 0)
    assert [row["id"] for row in read_lines(tmp_path / "out" / "qa.jsonl")] == [1, 2, 3, 4]


def test_max_rows_takes_the_first_rows(stub: Any, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = image_qa(str(drawn / "dataset.json"), str(out), endpoint=stub.url, max_rows=5)
    assert (summary.rows, summary.requests) == (5, 5)
    assert len(read_lines(out / "qa.jsonl")) == 5


def test_everything_works_on_s3(stub: Any, s3: str, drawn: Path) -> None:
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


def test_no_cell_of_a_frame_and_no_key_reaches_the_database(
    keyed_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"image": [(drawn / "images" / "000.png").read_bytes()], "x": ["cell-7"]})
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=endpoint)
    assert summary.ok == 1
    stored = read_lines(tmp_path / "out" / "qa.jsonl")[0]
    assert stored["x"] == "cell-7"
    assert stored["image"].startswith("data:image/png;base64,")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=200)
    told = " ".join(str(run.parameters) for run in runs)
    assert "DataFrame" in told
    assert "cell-7" not in told
    assert keyed_stub.api_key not in told
    kept = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert keyed_stub.api_key.encode() not in kept


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "dataset missing": ({"dataset": "nowhere.json"}, "nowhere.json"),
    "no image column": ({"columns": Columns(image="picture")}, "image, conversation"),
    "no such model": ({"model": "gpt-5"}, "does not serve 'gpt-5'"),
    "no server": ({"endpoint": "http://127.0.0.1:9"}, "no server answers at http://127.0.0.1:9"),
    "no endpoint": ({"endpoint": None}, "no model to ask"),
    "no such block": ({"endpoint": "no-such-block"}, "no-such-block"),
    "column taken": ({"columns": Columns(output="image")}, "'image'"),
    "unknown parser": ({"parsing": Parsing(parser="nope")}, "qa_pairs"),
    "unknown style": ({"prompt_style": "os.path:nope"}, "chat"),
    "ftp output": ({"output": "ftp://host/out"}, "ftp:// is not supported"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_before_any_work(
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


def test_a_wrong_key_is_one_clear_line(keyed_stub: Any, drawn: Path, tmp_path: Path) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key="wrong-key")
    with pytest.raises(ImageQAError, match="rejects the API key") as raised:
        image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=endpoint)
    assert "wrong-key" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_server_that_dies_leaves_what_is_stored_and_the_next_run_goes_on(
    start_stub: Callable[..., Any],
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = sorted((drawn / "images").iterdir())
    conversations = [say(f"row {n}") for n in range(12)]
    conversations[8] = say("STUB die")
    frame = pd.DataFrame({"image": [str(path) for path in images], "conversation": conversations})
    mortal = start_stub()
    monkeypatch.setattr("prefect_imageqa.flows.run_model.RECONNECT_SECONDS", 3.0)
    with pytest.raises(ImageQAError, match="no server has answered for 3 s"):
        image_qa(
            frame,
            str(tmp_path / "out"),
            endpoint=mortal.url,
            limits=Limits(batch_size=2, max_in_flight=1),
        )
    assert "Traceback" not in caplog.text
    stored = sum(pq.read_metadata(part).num_rows for part in (tmp_path / "out").rglob("*.parquet"))
    assert stored >= 6
    conversations[8] = say("row 8")
    frame = frame.assign(conversation=pd.Series(conversations))
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.reused, summary.requests) == (12, stored, 12 - stored)


def shout(text: str) -> list[QAPair]:
    return [QAPair("What?", text.upper())]


def test_a_parser_of_ones_own_reads_what_is_stored(stub: Any, drawn: Path, tmp_path: Path) -> None:
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


def test_the_next_run_asks_only_failures_that_may_pass(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_ATTEMPTS, FailureKind.TIMEOUT, 1)
    texts = ["STUB once 504", "STUB finish length", "STUB text no pair", "Hello"]
    frame = pd.DataFrame(
        {
            "image": [str(drawn / "images" / "000.png")] * 4,
            "conversation": [say(f"{text} {tmp_path.name}") for text in texts],
        }
    )
    output = str(tmp_path / "out")
    first = image_qa(frame, output, endpoint=stub.url)
    assert first.reasons == {"timeout": 1, "truncated": 1, "unparsed": 1}
    second = image_qa(frame, output, endpoint=stub.url)
    assert (second.requests, second.ok, second.reused) == (1, 2, 1)
    assert second.reasons == {"truncated": 1, "unparsed": 1}


def test_a_gateway_before_a_dead_server_stops_the_run(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.client.client._backoff", lambda _: 0.0)
    frame = pd.DataFrame(
        {"image": [str(drawn / "images" / "000.png")], "conversation": [say("STUB status 502")]}
    )
    with pytest.raises(ImageQAError, match="stopped answering: HTTP 502"):
        image_qa(frame, str(tmp_path / "out"), endpoint=stub.url)


def test_a_later_row_keeps_its_column(stub: Any, drawn: Path, tmp_path: Path) -> None:
    rows = [{"image": "images/000.png"}, {"image": "images/001.png", "output": "mine"}]
    (drawn / "late.json").write_text(json.dumps(rows))
    summary = image_qa(str(drawn / "late.json"), str(tmp_path / "out"), endpoint=stub.url)
    assert (summary.ok, summary.reasons) == (1, {"bad_row": 1})


def test_an_output_among_the_images_is_refused(stub: Any, drawn: Path) -> None:
    with pytest.raises(ImageQAError, match="is inside the dataset's folder"):
        image_qa(str(drawn / "images"), str(drawn / "images" / "out"), endpoint=stub.url)
    assert not (drawn / "images" / "out").exists()


def test_a_dataset_that_changes_during_the_run_is_told(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    dataset = drawn / "dataset.json"
    rows = json.loads(dataset.read_text())

    def change(given: PromptInput) -> list[dict[str, Any]]:
        dataset.write_text(json.dumps([{"image": "images/005.png"}, *rows]))
        return chat_prompt(given)

    told_style.__dict__["act"] = change
    output = str(tmp_path / "out")
    with pytest.raises(ImageQAError, match="changed during the run"):
        image_qa(str(dataset), output, endpoint=stub.url, prompt_style=told_style)
    assert not (tmp_path / "out" / "qa.jsonl").exists()
    assert image_qa(str(dataset), output, endpoint=stub.url).ok == 13


def told_style(given: PromptInput) -> list[dict[str, Any]]:
    """A style that does what the test has told it to."""
    messages: list[dict[str, Any]] = told_style.__dict__["act"](given)
    return messages


def test_options_keep_what_is_stored_small(stub: Any, drawn: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")], "x": ["cell-9"]})
    named = image_qa.with_options(name="image-qa-renamed")
    assert named(frame, str(tmp_path / "out"), endpoint=stub.url).ok == 1
    with get_client(sync_client=True) as client:
        told = " ".join(str(run.parameters) for run in client.read_flow_runs(limit=200))
    assert "cell-9" not in told
