"""The corrective request goes on with the row's own conversation."""

from typing import Any

import pytest
from prefect_imageqa.tasks.prompting.correction import (
    SHOWN_CHARACTERS,
    Correction,
    corrective_messages,
)
from prefect_imageqa.tasks.prompting.reply_forms import reply_format
from prefect_imageqa.tasks.records import Asked, ReplyForm

IMAGE = {"type": "image", "image": 0}


def conversation(text: str, system: str = "You see images.") -> tuple[dict[str, Any], ...]:
    parts = [IMAGE, {"type": "text", "text": text}]
    return ({"role": "system", "content": system}, {"role": "user", "content": parts})


def test_the_model_sees_its_reply_and_what_is_wrong_with_it() -> None:
    messages = conversation("Ask something.")
    asked = corrective_messages(messages, Asked(), Correction("I like it.\n", "has no question"))
    assert asked[:2] == messages
    assert asked[2] == {"role": "assistant", "content": "I like it."}
    assert asked[3]["role"] == "user"
    assert asked[3]["content"].startswith("Your reply cannot be used: it has no question. ")
    assert asked[3]["content"].endswith("\n\nAsk something.")


@pytest.mark.parametrize(
    ("messages", "is_stated"),
    [
        (conversation("Ask something."), False),
        (conversation(reply_format(ReplyForm.PAIRS, 1, json=False)), True),
        (conversation(reply_format(ReplyForm.PAIRS, 3, json=True)), True),
        (conversation("Ask.", system='Give JSON: {"q": ""}.'), True),
    ],
    ids=["none", "text", "JSON", "JSON of a user's own"],
)
def test_a_form_is_given_only_where_the_prompt_gives_none(messages: Any, is_stated: bool) -> None:
    asked = corrective_messages(messages, Asked(), Correction("I like it.", "has no question"))
    assert ("Mark each question" in asked[-1]["content"]) is not is_stated


def test_an_empty_reply_is_not_shown() -> None:
    messages = conversation("Ask something.")
    assert corrective_messages(messages, Asked(), Correction(" \n", "is empty")) == messages


def test_only_the_start_of_a_long_reply_is_shown() -> None:
    asked = corrective_messages((), Asked(), Correction("x" * 100_000, "has no question"))
    assert len(asked[0]["content"]) == SHOWN_CHARACTERS
