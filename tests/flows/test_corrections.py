"""Replies in another form than was asked for: corrected, or prevented by a JSON schema."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import Limits, image_qa
from prefect_imageqa.tasks.runs.parameters import Asking

ROWS = 40


@pytest.fixture
def dataset(drawn: Path) -> str:
    """Rows about one image, each with a question of its own."""
    rows = [{"image": "images/000.png", "conversation": f"Ask {row}."} for row in range(ROWS)]
    (drawn / "rows.json").write_text(json.dumps(rows))
    return str(drawn / "rows.json")


def test_corrective_requests_are_counted_apart_and_not_repeated(
    start_stub: Any, dataset: str, tmp_path: Path
) -> None:
    stub = start_stub("--unusable-share=0.5", "--corrected-share=0.5", "--seed=1")
    output = tmp_path / "out"
    limits = Limits(max_error_rate=1, batch_size=16)
    first = image_qa(dataset, str(output), endpoint=stub.url, limits=limits)
    assert 0 < first.corrected < first.corrections < ROWS
    assert first.requests == ROWS + first.corrections
    assert first.reasons == {"unparsed": first.corrections - first.corrected}
    assert f"{first.corrected} of {first.corrections} unusable replies corrected" in str(first)
    stored = [json.loads(path.read_text()) for path in output.glob("*/completions/*")]
    rows = [row for record in stored for row in json.loads(record["result"])["replies"]]
    replaced = [row for row in rows if row["unusable"] is not None]
    assert len(replaced) == first.corrected
    assert all("Answer" in row["reply"]["text"] for row in replaced)

    again = image_qa(dataset, str(output), endpoint=stub.url, limits=limits)
    assert (again.ok, again.requests) == (first.ok, 0)
    assert (again.corrections, again.corrected) == (0, 0)


def test_a_server_without_schemas_is_asked_for_json_all_the_same(
    start_stub: Any, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start_stub("--refuse-schemas")
    with caplog.at_level(logging.WARNING):
        summary = image_qa(
            dataset,
            str(tmp_path / "out"),
            endpoint=stub.url,
            style="single",
            asking=Asking(format="json"),
        )
    assert (summary.ok, summary.requests) == (ROWS, 1)  # all about the same image
    assert "does not make replies follow a JSON schema" in caplog.text
    body = stub.stats()["bodies"][-1]
    assert "response_format" not in body
    assert '{"question": "...", "answer": "..."}' in json.dumps(body["messages"]).replace(
        '\\"', '"'
    )
