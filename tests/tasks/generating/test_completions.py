import json
from typing import Any

import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.errors import RecordCorruptedError
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.object_store.prefect_results import RESULT_SERIALIZER
from prefect_imageqa.tasks.prompting.keys import batch_key
from prefect_imageqa.tasks.records import Asked, Batch, Kind, Problem, Prompt, ReplyForm

FORM = ReplyForm.MULTIPLE_CHOICE
KEYS = tuple(f"{number:032x}" for number in range(2))
BATCH = Batch(
    number=3,
    key=batch_key(KEYS, (0, 2), "cache_buster"),
    prompts=tuple(
        Prompt(number, key, f"d:{number}", asked=Asked(f"What is {number}?", "short@1", FORM, "t"))
        for number, key in enumerate(KEYS)
    ),
    attempts=(0, 2),
    cache_buster="cache_buster",
    replies={
        KEYS[0]: Completion("a text é", "stop", 7, 3, 0.25, "m", 2, "a reason"),
        KEYS[1]: Problem(Kind.TIMEOUT, "timed out", 504, 1),
    },
    corrected={KEYS[0]: "Sure!"},
)


def stored() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(RESULT_SERIALIZER.dumps(Completions.from_batch(BATCH)))
    return loaded


def test_stored_completions_hold_everything_that_parsing_needs() -> None:
    loaded = Completions.load(stored())
    assert [reply.reply for reply in loaded.replies] == list(BATCH.replies.values())
    assert [
        (reply.key, reply.attempt, reply.row, reply.where, reply.unusable)
        for reply in loaded.replies
    ] == [(KEYS[0], 0, 0, "d:0", "Sure!"), (KEYS[1], 2, 1, "d:1", None)]
    assert [reply.asked for reply in loaded.replies] == [
        Asked(f"What is {number}?", "short@1", FORM, "t") for number in range(2)
    ]
    assert loaded.key == BATCH.key


def test_completions_of_this_process_are_not_validated_again() -> None:
    completions = Completions.from_batch(BATCH)
    assert Completions.load(completions) is completions


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in stored().items() if key != name}


def with_row(**changed: Any) -> dict[str, Any]:
    rows = stored()["replies"]
    return stored() | {"replies": [rows[0] | changed, rows[1]]}


def with_completion(**changed: Any) -> dict[str, Any]:
    return with_row(reply=stored()["replies"][0]["reply"] | changed)


def with_problem(**changed: Any) -> dict[str, Any]:
    row = stored()["replies"][1]
    return stored() | {"replies": [row | {"reply": row["reply"] | changed}]}


@pytest.mark.parametrize(
    "corrupted",
    [
        {},
        without("replies"),
        without("time"),
        stored() | {"format": 0},
        stored() | {"replies": {"a": 1}},
        stored() | {"replies": None},
        stored() | {"replies": [None]},
        with_row(key="no key"),
        with_row(key="00"),
        with_row(attempt="often"),
        with_row(question=None),
        with_row(reply={"text": "no more"}),
        with_completion(reasoning=None),
        with_completion(text=3),
        with_completion(finish_reason=5),
        with_completion(latency="long"),
        with_completion(__class__="os.system"),
        with_problem(kind="new"),
        # numbers out of the range of the columns of a part
        with_row(attempt=2**31),
        with_row(attempt=-1),
        with_row(row=2**70),
        with_row(row=float("inf")),
        with_completion(prompt_tokens=2**64),
        with_completion(completion_tokens=-1),
        with_completion(latency=float("nan")),
        with_problem(status=2**31),
        with_problem(attempts=2**31),
        stored() | {"time": float("nan")},
        stored() | {"time": float("inf")},
        stored() | {"time": 10**400},
        stored() | {"time": -1},
    ],
)
def test_corrupted_completions_are_rejected(corrupted: dict[str, Any]) -> None:
    with pytest.raises(RecordCorruptedError):
        Completions.load(corrupted)
