from typing import Any

import pytest
from prefect_imageqa.tasks.prompting.chat import last_question


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([], ""),
        ([{"role": "system", "content": "Be brief."}], ""),
        ([{"role": "user", "content": " What? \n"}], "What?"),
        (
            [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "He."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": 0},
                        {"type": "text", "text": "Look."},
                        {"type": "text", "text": "What?"},
                    ],
                },
            ],
            "Look.\nWhat?",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": 0}]}], ""),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "user", "content": ["What?", {"type": "text", "text": 5}]}], ""),
    ],
    ids=["none", "system", "text", "several", "image", "null", "odd parts"],
)
def test_the_question_is_the_text_of_the_users_last_message(
    messages: list[dict[str, Any]], question: str
) -> None:
    assert last_question(messages) == question
