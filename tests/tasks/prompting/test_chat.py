from typing import Any

import pytest
from prefect_imageqa.serving.types import Message
from prefect_imageqa.tasks.loading.conversations import Turn
from prefect_imageqa.tasks.prompting.chat import chat_prompt, chat_style, last_question
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import RowError


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": number}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*parts: dict[str, Any]) -> Message:
    return {"role": "user", "content": list(parts)}


def rendered(*turns: Turn, images: int = 1, system: str = "") -> list[Message]:
    return chat_prompt(PromptInput(turns, images, system, "ASK", {}))


def test_without_a_conversation_the_user_prompt_is_used() -> None:
    assert rendered(system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        user(image(0), text("ASK")),
    ]


def test_rows_without_a_conversation_share_their_prompt() -> None:
    inputs = [PromptInput((), images, "s", "ASK", {"id": images}) for images in (1, 2, 1)]
    one, two, again = map(chat_style, inputs)
    assert one is again
    assert one.asked == two.asked
    assert [two.messages[-1]] == [user(image(0), image(1), text("ASK"))]


@pytest.mark.parametrize(
    ("turns", "last"),
    [
        ([Turn("user", "")], user(image(0), text("ASK"))),
        ([Turn("user", " \n")], user(image(0), text("ASK"))),
        ([Turn("user", "<image>\n")], user(image(0), text("ASK"))),
        ([Turn("assistant", "An answer.")], user(image(0), text("ASK"))),
        ([Turn("system", "s")], user(image(0), text("ASK"))),
        ([Turn("user", " What? ")], user(image(0), text("What?"))),
    ],
    ids=["empty", "blank", "only-placeholder", "only-answer", "only-system", "question"],
)
def test_a_conversation_without_a_question_gets_the_user_prompt(
    turns: list[Turn], last: Message
) -> None:
    assert rendered(*turns)[-1] == last


def test_system_turns_are_merged_into_the_system_prompt() -> None:
    messages = rendered(
        Turn("system", " one "), Turn("user", "a"), Turn("system", "two"), system="0"
    )
    assert messages == [{"role": "system", "content": "0\n\none\n\ntwo"}, user(image(0), text("a"))]


@pytest.mark.parametrize("system", ["", "  \n"])
def test_an_empty_system_prompt_is_no_message(system: str) -> None:
    assert [message["role"] for message in rendered(Turn("user", "a"), system=system)] == ["user"]


def test_only_trailing_answers_are_dropped() -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    assert rendered(*turns, Turn("assistant", "e")) == [
        user(image(0), text("a")),
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("turns", "images", "expected"),
    [
        (["a"], 0, [{"role": "user", "content": "a"}]),
        (["a"], 2, [user(image(0), image(1), text("a"))]),
        (["<image>\na"], 1, [user(image(0), text("a"))]),
        (["a <image> b"], 1, [user(text("a"), image(0), text("b"))]),
        (["a<image><image>b"], 2, [user(text("a"), image(0), image(1), text("b"))]),
        (
            ["a", "=b", "c <image>"],
            1,
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                user(text("c"), image(0)),
            ],
        ),
        (["a <image>"], 3, [user(image(0), image(1), text("a"), image(2))]),
        (
            ["=hello", "a"],
            1,
            [{"role": "assistant", "content": "hello"}, user(image(0), text("a"))],
        ),
    ],
    ids=[
        "text-only",
        "image-first",
        "placeholder-first",
        "placeholder-between",
        "two-placeholders",
        "placeholder-in-later-turn",
        "some-without-placeholder",
        "assistant-first",
    ],
)
def test_images_are_placed(turns: list[str], images: int, expected: list[Message]) -> None:
    conversation = [
        Turn("assistant", turn[1:]) if turn.startswith("=") else Turn("user", turn)
        for turn in turns
    ]
    assert rendered(*conversation, images=images) == expected


@pytest.mark.parametrize("images", [0, 1])
def test_more_placeholders_than_images_are_a_problem(images: int) -> None:
    with pytest.raises(RowError, match=f"2 <image> placeholders, but the row has {images} images"):
        rendered(Turn("user", "<image> a <image>"), images=images)


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
