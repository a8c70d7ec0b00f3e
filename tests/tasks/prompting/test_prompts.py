from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.serving.types import Message
from prefect_imageqa.tasks.images.preparing import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase
from prefect_imageqa.tasks.prompting.keys import KEY_LENGTH, RequestSpec, problem_key
from prefect_imageqa.tasks.prompting.prompts import (
    PromptInput,
    PromptSettings,
    PromptStyle,
    Turn,
    chat_prompt,
    prompt_rows,
    read_conversation,
)
from prefect_imageqa.tasks.records import Kind, Problem, Prompt, Row, RowError

SPEC = RequestSpec("m", "", {"temperature": 0.7}, {"max_side": 1024}, "chat")


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": number}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*parts: dict[str, Any]) -> Message:
    return {"role": "user", "content": list(parts)}


def rendered(*turns: Turn, images: int = 1, system: str = "", asked: str = "ASK") -> list[Message]:
    return chat_prompt(PromptInput(turns, images, system, asked, {}))


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        (None, ()),
        ("", (("user", ""),)),
        (" \n", (("user", " \n"),)),
        ("What?", (("user", "What?"),)),
        ([], ()),
        ({"from": "human", "value": "a"}, (("user", "a"),)),
        (
            [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            (("user", "a"), ("assistant", "b")),
        ),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            (("system", "s"), ("user", "a")),
        ),
        ([{"role": "Assistant", "content": "a"}], (("assistant", "a"),)),
        ([{"from": "model", "value": ""}], (("assistant", ""),)),
        # a Parquet file with both forms
        ([{"from": None, "role": "user", "value": None, "content": "a"}], (("user", "a"),)),
        (
            [{"role": "user", "content": [text("a"), {"type": "image"}, text("b")]}],
            (("user", "a\n<image>\nb"),),
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            (("user", "<image>"),),
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], (("user", ""),)),
        ("half a \ud83d pair", (("user", "half a ? pair"),)),
        ([{"from": "human", "value": "half a \ud83d pair"}], (("user", "half a ? pair"),)),
        ([{"role": "user", "content": [text("\udcff")]}], (("user", "?"),)),
    ],
)
def test_a_conversation_is_read(value: Any, turns: tuple[tuple[str, str], ...]) -> None:
    assert tuple((turn.role, turn.text) for turn in read_conversation(value)) == turns


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "the conversation is a int, not a list"),
        (["hello"], "turn 1 of the conversation is not an object"),
        ([{"from": "human", "value": "a"}, None], "turn 2 of the conversation is not an object"),
        ([{"from": "robot", "value": "a"}], "is from 'robot'; known are system, human, user"),
        ([{"from": "x" * 500, "value": "a"}], f"is from '{'x' * 40}'; known are"),
        ([{"value": "a"}], "is from 'None'; known are"),
        ([{"from": "human"}], "turn 1 of the conversation has no text"),
        ([{"from": "human", "value": 5}], "turn 1 of the conversation has no text"),
        ([{"from": "human", "value": b"a"}], "turn 1 of the conversation has no text"),
        ([{"role": "user", "content": [{"type": "video"}]}], "conversation has no text"),
        ([{"role": "user", "content": ["a"]}], "conversation has no text"),
    ],
)
def test_a_conversation_that_is_none_costs_its_row(value: Any, said: str) -> None:
    with pytest.raises(RowError) as raised:
        read_conversation(value)
    assert raised.value.problem.kind is Kind.BAD_ROW
    assert said in raised.value.problem.message


def test_without_a_conversation_the_user_prompt_is_asked() -> None:
    assert rendered(system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        user(image(0), text("ASK")),
    ]


@pytest.mark.parametrize(
    ("turns", "last"),
    [
        ([Turn("user", "")], user(image(0), text("ASK"))),
        ([Turn("user", " \n")], user(image(0), text("ASK"))),
        ([Turn("user", "<image>\n")], user(image(0), text("ASK"))),
        ([Turn("assistant", "said before")], user(image(0), text("ASK"))),
        ([Turn("system", "s")], user(image(0), text("ASK"))),
        ([Turn("user", " What? ")], user(image(0), text("What?"))),
    ],
    ids=["empty", "blank", "only a mark", "only an answer", "only a system turn", "a question"],
)
def test_a_conversation_that_asks_nothing_asks_the_user_prompt(
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


def test_trailing_answers_are_dropped_and_earlier_ones_kept() -> None:
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
        "text only",
        "image first",
        "mark first",
        "mark between",
        "two marks",
        "mark in a later turn",
        "some unmarked",
        "assistant begins",
    ],
)
def test_images_are_placed(turns: list[str], images: int, expected: list[Message]) -> None:
    said = [
        Turn("assistant", turn[1:]) if turn.startswith("=") else Turn("user", turn)
        for turn in turns
    ]
    assert rendered(*said, images=images) == expected


@pytest.mark.parametrize("images", [0, 1])
def test_more_marks_than_images_cost_the_row(images: int) -> None:
    with pytest.raises(RowError, match=f"marks 2 images with <image>, the row has {images}"):
        rendered(Turn("user", "<image> a <image>"), images=images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def settings(
    folder: Path, style: PromptStyle = chat_prompt, image_key: str | None = "image"
) -> PromptSettings:
    return PromptSettings(
        ImageBase(folder=str(folder)),
        ImageReader(1000),
        SPEC,
        style=style,
        system_prompt="SYSTEM",
        user_prompt="ASK",
        image_key=image_key,
        limits=ImageSettings(max_images=3),
    )


def row(record: dict[str, Any], index: int = 3) -> Row:
    return Row(index, record, f"d.jsonl:{index + 1}")


def prompt_row(row: Row, settings: PromptSettings) -> Prompt:
    (prompt,) = prompt_rows.fn([row], settings)
    return prompt


def test_a_row_becomes_a_prompt(folder: Path) -> None:
    record = {"image": ["a.png", "b.png"], "conversation": "Which?", "other": 1}
    prompt = prompt_row(row(record), settings(folder))
    assert (prompt.row, prompt.where, prompt.problem) == (3, "d.jsonl:4", None)
    assert [ref.path for ref in prompt.images] == [str(folder / "a.png"), str(folder / "b.png")]
    assert prompt.messages == (
        {"role": "system", "content": "SYSTEM"},
        user(image(0), image(1), text("Which?")),
    )
    assert len(bytes.fromhex(prompt.key)) == KEY_LENGTH // 2


def test_a_key_is_of_what_is_asked_and_of_nothing_else(folder: Path) -> None:
    def key(index: int = 0, **record: Any) -> str:
        return prompt_row(row({"image": "a.png"} | record, index), settings(folder)).key

    assert key() == key(index=7) == key(other=1) == key(conversation=[]) == key(image=["a.png"])
    assert (
        len({key(), key(image="b.png"), key(conversation="Which?"), key(image=["a.png"] * 2)}) == 4
    )
    before = key()
    (folder / "a.png").write_bytes(b"another picture under the same name")
    assert key() != before


def test_without_an_image_key_no_image_is_asked(folder: Path) -> None:
    prompt = prompt_row(row({"image": "nowhere.png"}), settings(folder, image_key=None))
    assert prompt.problem is None
    assert prompt.images == ()
    assert prompt.messages[-1] == {"role": "user", "content": "ASK"}


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        ({}, Kind.NO_IMAGE, "nothing under 'image'"),
        ({"image": None}, Kind.NO_IMAGE, "nothing under 'image'"),
        ({"image": []}, Kind.NO_IMAGE, "nothing under 'image'"),
        ({"image": "none.png"}, Kind.IMAGE_MISSING, "there is no file 'none.png'"),
        ({"image": "ftp://host/a.png?key=s"}, Kind.IMAGE_REFUSED, "is not fetched"),
        ({"image": "data:;base64," + "A" * 1336}, Kind.IMAGE_TOO_LARGE, "larger than the limit"),
        ({"image": 5}, Kind.BAD_ROW, "the image column holds a int"),
        ({"image": "a.png", "conversation": 5}, Kind.BAD_ROW, "not a list"),
        ({"image": "a.png", "conversation": "<image><image>"}, Kind.BAD_ROW, "marks 2 images"),
    ],
)
def test_a_row_that_cannot_be_asked_carries_its_problem(
    record: dict[str, Any], kind: Kind, said: str, folder: Path
) -> None:
    prompt = prompt_row(row(record), settings(folder))
    assert prompt.problem is not None
    assert prompt.problem.kind is kind
    assert said in prompt.problem.message
    assert (prompt.messages, prompt.images) == ((), ())
    assert prompt.key == problem_key(row(record))
    assert prompt.key != prompt_row(row(record, index=4), settings(folder)).key


def test_a_line_that_could_not_be_read_keeps_its_problem(folder: Path) -> None:
    problem = Problem(Kind.BAD_ROW, "line 4 is not JSON")
    prompt = prompt_row(Row(3, {}, "d.jsonl:4", problem), settings(folder))
    assert prompt.problem is problem
    assert prompt.where == "d.jsonl:4"


def test_a_style_of_ones_own_sees_the_row_and_may_refuse_it(folder: Path) -> None:
    def by_category(given: PromptInput) -> Sequence[Message]:
        if "category" not in given.record:
            raise RowError(Kind.BAD_ROW, "no category")
        return [user(text(f"{given.system_prompt}: {given.record['category']}"), image(0))]

    rows = [row({"image": "a.png", "category": "cats"}), row({"image": "a.png"})]
    asked, refused = prompt_rows.fn(rows, settings(folder, by_category))
    assert asked.messages == (user(text("SYSTEM: cats"), image(0)),)
    assert refused.problem == Problem(Kind.BAD_ROW, "no category")


def _asks_for_the_second_image(given: PromptInput) -> Sequence[Message]:
    return [user(image(1), text("What?"))]


def _fails(given: PromptInput) -> Sequence[Message]:
    raise KeyError("caption")


def _writes_no_message(given: PromptInput) -> Sequence[Message]:
    return [{"role": "user"}]


@pytest.mark.parametrize(
    ("style", "said"),
    [
        (_asks_for_the_second_image, "image 1 of 1"),
        (_fails, "KeyError: 'caption'"),
        (_writes_no_message, "'content'"),
    ],
)
def test_a_style_that_fails_costs_its_row(style: PromptStyle, said: str, folder: Path) -> None:
    prompt = prompt_row(row({"image": "a.png"}), settings(folder, style=style))
    assert prompt.problem is not None
    assert prompt.problem.kind is Kind.BAD_ROW
    assert said in prompt.problem.message


def test_more_images_than_a_row_may_have_cost_it(folder: Path) -> None:
    assert prompt_row(row({"image": ["a.png"] * 3}), settings(folder)).problem is None
    prompt = prompt_row(row({"image": ["a.png"] * 4}), settings(folder))
    assert prompt.problem is not None
    assert prompt.problem.message == "the row has 4 images, over the 3 of max_images"
