"""The check `confidence`."""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from prefect_imageqa.serving.client.scores import scored_text
from prefect_imageqa.serving.types import ChatRequest, Completion
from prefect_imageqa.tasks.checking import confidence
from prefect_imageqa.tasks.generating.completions import StoredReply
from prefect_imageqa.tasks.parsing.parse import parse_reply
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import Answered, Asked, FinishedRow, Kind, QAPair, Quarantined

CHECK = confidence.check()
PAIR = QAPair("What colour is the bus?", "The bus is red.")
CHOICE = QAPair("Colour?", "red", options=("blue", "red"), correct="B")
FAILED = Quarantined("k" * 32, 0, "row 0", Kind.TIMEOUT, "no reply")


def asked(pair: QAPair, image_count: int = 1) -> ChatRequest:
    rendered = CHECK.style(PromptInput((), image_count, "Write pairs.", "", record={}, pair=pair))
    return ChatRequest(list(rendered.messages), dict(CHECK.sampling))


def outcome_of(text: str) -> FinishedRow:
    """The outcome of a request whose completion has that text."""
    completion = Completion(text, "stop", 40, 1, 0.1, "m")
    stored = StoredReply("ab" * 16, 0, 0, "row 0", completion, Asked(PAIR.question))
    return parse_reply(stored, CHECK.parsing)


def test_the_answer_is_what_the_model_is_about_to_have_said() -> None:
    request = asked(PAIR)
    assert request.messages == [
        {
            "role": "user",
            "content": [{"type": "image", "image": 0}, {"type": "text", "text": PAIR.question}],
        },
        {"role": "assistant", "content": PAIR.answer},
    ]
    assert scored_text(request) == PAIR.answer


@pytest.mark.parametrize(
    ("pair", "question", "answer"),
    [
        (replace(PAIR, answer="Red"), f"{PAIR.question}\nAnswer in one to three words.", "Red"),
        (
            replace(PAIR, answer="Rot", language="German"),
            f"{PAIR.question}\nAnswer in German.\nAnswer in one to three words.",
            "Rot",
        ),
        (
            CHOICE,
            "Colour?\nA. blue\nB. red\nAnswer with the letter of the right option.",
            "B",
        ),
        (replace(PAIR, answer="红" * 41), PAIR.question, "红" * 41),
    ],
    ids=["short", "language", "options", "no spaces"],
)
def test_the_question_asks_for_an_answer_of_that_form(
    pair: QAPair, question: str, answer: str
) -> None:
    request = asked(pair, image_count=0)
    assert [message["content"] for message in request.messages] == [question, answer]


@pytest.mark.parametrize(
    ("language", "request_text"),
    [
        (
            "",
            "Write one question about the image, without its answer.\n"
            "Reply with the question only.",
        ),
        (
            "German",
            "Write one question about the image, without its answer.\nWrite in German.\n"
            "Reply with the question only.",
        ),
    ],
)
def test_fluency_scores_the_question_as_one_that_the_model_asks(
    language: str, request_text: str
) -> None:
    check = confidence.fluency_check()
    pair = replace(PAIR, language=language)
    rendered = check.style(PromptInput((), 1, "Write pairs.", "", record={}, pair=pair))
    asking, scored = rendered.messages
    assert asking["content"][1] == {"type": "text", "text": request_text}
    assert scored == {"role": "assistant", "content": PAIR.question}
    assert [field.name for field in check.columns] == ["fluency", "fluency_token"]


def test_the_columns_are_the_lowest_log_probability_and_its_token() -> None:
    outcome = outcome_of('{"token":" red","logprob":-1.25}')
    assert isinstance(outcome, Answered)
    values = CHECK.verdict(PAIR, [outcome])
    assert list(values) == [-1.25, " red"]
    table = pa.Table.from_pylist(
        [{field.name: value for field, value in zip(CHECK.columns, values, strict=True)}],
        pa.schema(CHECK.columns),
    )
    assert table.column_names == ["confidence", "confidence_token"]


@pytest.mark.parametrize(
    "parsed",
    [
        None,
        [],
        {"token": " red"},
        {"token": 5, "logprob": -1.0},
        {"token": "a", "logprob": "-1"},
        {"token": "a", "logprob": True},
        {"token": "a", "logprob": 1.0},
        {"token": "a", "logprob": float("nan")},
    ],
)
def test_what_an_output_holds_instead_is_no_result(parsed: Any) -> None:
    outcome = Answered("ab" * 16, "", parsed, "m", 1, 1, 0.1)
    assert list(CHECK.verdict(PAIR, [outcome])) == [None, None]


def test_a_failed_request_is_no_result() -> None:
    assert list(CHECK.verdict(PAIR, [FAILED])) == [None, None]
    assert list(CHECK.verdict(PAIR, [])) == [None, None]


def test_a_reply_that_is_no_score_costs_its_row_only() -> None:
    outcome = outcome_of("The bus is red.")
    assert isinstance(outcome, Quarantined)
    assert outcome.kind is Kind.UNPARSED
    assert outcome_of(json.dumps({})) != outcome
