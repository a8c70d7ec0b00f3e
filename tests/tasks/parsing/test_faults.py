"""What a model is told about a reply that cannot be used."""

from dataclasses import replace

import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.parsing.faults import reply_fault
from prefect_imageqa.tasks.parsing.parse import (
    ANSWER,
    QA_PAIRS,
    ParseSettings,
    parse_completion,
)
from prefect_imageqa.tasks.parsing.parsers import Parsed
from prefect_imageqa.tasks.records import Asked, ReplyForm


def fault(
    text: str, settings: ParseSettings = QA_PAIRS, form: ReplyForm = ReplyForm.PAIRS, **more: str
) -> str:
    completion = Completion(text, "stop", 1, 1, 0.1, "stub", **more)  # type: ignore[arg-type]
    return reply_fault(completion, Asked("What is it?", form=form), settings)


def test_a_usable_reply_has_no_fault() -> None:
    assert fault("**Question:** What is it?\n**Answer:** A dog.") == ""
    assert fault("A dog.", ANSWER, ReplyForm.ANSWER) == ""


@pytest.mark.parametrize("text", ["", " \n", "<think>Hm.</think>"])
def test_an_empty_reply_is_a_fault(text: str) -> None:
    assert fault(text) == "is empty"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (ReplyForm.PAIRS, "has no question with an answer that can be read"),
        (ReplyForm.DIALOGUE, "has no question with an answer that can be read"),
        (
            ReplyForm.MULTIPLE_CHOICE,
            "has no question with options and the letter of the right one",
        ),
    ],
)
def test_a_reply_in_another_form_is_a_fault(form: ReplyForm, expected: str) -> None:
    assert fault("I like it.", form=form) == expected


def test_what_asking_again_does_not_mend_is_no_fault() -> None:
    def broken(_text: str, _asked: Asked) -> Parsed:
        raise ValueError("a bug of the parser")

    assert fault("I like it.", replace(QA_PAIRS, parser=broken)) == ""
    assert fault("I like it.", replace(QA_PAIRS, required=False)) == ""
    assert fault("", reasoning="The server takes all of the reply for reasoning.") == ""


def test_a_reply_that_was_checked_is_not_parsed_again() -> None:
    parsed: list[str] = []

    def parser(text: str, _asked: Asked) -> Parsed:
        parsed.append(text)
        return Parsed([{"question": text, "answer": "yes"}])

    settings = ParseSettings("own", parser)
    for text in ("one", "two"):
        assert fault(text, settings) == ""
    for text in ("two", "one"):
        completion = Completion(text, "stop", 1, 1, 0.1, "stub")
        found = parse_completion(completion, settings, Asked("What is it?", form=ReplyForm.PAIRS))
        assert isinstance(found, Parsed)
        assert found.value == [{"question": text, "answer": "yes"}]
    assert parsed == ["one", "two"]
