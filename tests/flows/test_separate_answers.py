"""Questions first, then an answer to each: two passes of one run, on the stub."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa import Asking, Columns, ImageQAError, image_qa
from prefect_imageqa.flows.run import Run
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore

SEPARATELY = Asking(answer="separately")


def test_each_question_is_answered_on_its_own(stub: Any, told: dict[str, Any]) -> None:
    told |= {"endpoint": stub.url, "asking": SEPARATELY}
    first = image_qa(**told)
    assert (first.rows, first.ok, first.quarantined, first.pairs) == (3, 2, 1, 3)
    assert (first.reasons, first.unanswered, first.requests) == ({"truncated": 1}, 1, 3 + 5)
    store = ObjectStore(uri=told["output"])
    pairs = pd.read_parquet(f"{told['output']}/pairs.parquet")
    assert pairs[["row", "question", "answer"]].to_numpy().tolist() == [
        [0, "One?", "It is One?"],
        [0, "Two?", "It is Two?"],
        [2, "Three?", "It is Three?"],
    ]
    quarantine = [json.loads(line) for line in store.lines("quarantine.jsonl")]
    assert [(row["row"], row["question"], row["kind"]) for row in quarantine] == [
        (1, None, "truncated"),
        (2, "Broken?", "truncated"),
    ]
    assert verify(store).problems == []
    again = image_qa(**told)
    assert (again.requests, again.ok, again.pairs) == (0, 2, 3)


def test_a_run_that_is_killed_between_the_passes_asks_no_question_again(
    stub: Any, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told |= {"endpoint": stub.url, "asking": SEPARATELY}
    monkeypatch.setattr(Run, "open_answers", _killed)
    with pytest.raises(ImageQAError, match="killed"):
        image_qa(**told)
    monkeypatch.undo()
    assert image_qa(**told).requests == 5


def _killed(*_: object) -> None:
    raise ImageQAError("killed")


def test_samples_of_a_row_are_asked_with_seeds_of_their_own(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")], "told": ["x"]})
    summary = image_qa(
        frame, str(tmp_path / "out"), stub.url, style="single", asking=Asking(samples=3)
    )
    bodies = stub.stats()["bodies"][-3:]
    assert (summary.rows, summary.ok, summary.requests) == (3, 3, 3)
    assert (summary.pairs, summary.duplicate_pairs) == (1, 2)
    assert len({body["seed"] for body in bodies}) == 3
    assert len({json.dumps(body["messages"]) for body in bodies}) == 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "chat": ({"asking": SEPARATELY}, "chat"),
    "dialogue": ({"asking": SEPARATELY, "style": "dialogue"}, "dialogue"),
    "prompt of one's own": ({"style": "single", "user_prompt": "Ask."}, "has prompts of its own"),
    "conversation": (
        {"style": "single", "columns": Columns(conversation="told")},
        "is not asked by this style",
    ),
    "schema twice": (
        {"style": "single", "asking": Asking(format="nowhere.json")},
        "there is no format 'nowhere.json'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_go_together_is_reported_before_any_request(
    mistake: str, stub: Any, drawn: Path, tmp_path: Path
) -> None:
    changed, expected = MISTAKES[mistake]
    frame = pd.DataFrame({"image": [str(drawn / "images" / "000.png")], "told": ["x"]})
    before = stub.stats()["requests"]
    with pytest.raises(ImageQAError, match=expected) as raised:
        image_qa(frame, str(tmp_path / "out"), stub.url, **changed)
    assert "\n" not in str(raised.value)
    assert stub.stats()["requests"] == before


def test_a_column_that_a_style_needs_must_be_there(stub: Any, told: dict[str, Any]) -> None:
    told["dataset"] = told["dataset"].rename(columns={"told": "other"})
    with pytest.raises(ImageQAError, match=r"no column 'told', which the style uses.*other"):
        image_qa(**told, endpoint=stub.url, asking=SEPARATELY)
