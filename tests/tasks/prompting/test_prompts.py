import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.context import FlowRunContext
from prefect_imageqa.serving.types import Message
from prefect_imageqa.tasks.concurrency import quote
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.prompting import prompts
from prefect_imageqa.tasks.prompting.chat import chat_prompt, style_of
from prefect_imageqa.tasks.prompting.keys import KEY_LENGTH, RequestSpec, problem_key
from prefect_imageqa.tasks.prompting.prompts import PromptSettings, prompt_rows
from prefect_imageqa.tasks.prompting.style import MessagesOf, PromptInput
from prefect_imageqa.tasks.records import ImageRef, Kind, Problem, Prompt, QAPair, Row, RowError

SPEC = RequestSpec("m", "", {"temperature": 0.7}, {"max_side": 1024})


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": number}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*parts: dict[str, Any]) -> Message:
    return {"role": "user", "content": list(parts)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def settings(
    folder: Path,
    style: MessagesOf = chat_prompt,
    image_key: str | None = "image",
    conversation_key: str | None = "conversation",
) -> PromptSettings:
    return PromptSettings(
        ImageBase(folder=str(folder)),
        ImageReader(1000),
        SPEC,
        style=style_of(style, "test"),
        system_prompt="SYSTEM",
        user_prompt="ASK",
        columns=Columns(image=image_key, conversation=conversation_key),
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


def test_a_key_depends_only_on_what_is_sent(folder: Path) -> None:
    def key(index: int = 0, **record: Any) -> str:
        return prompt_row(row({"image": "a.png"} | record, index), settings(folder)).key

    assert key() == key(index=7) == key(other=1) == key(conversation=[]) == key(image=["a.png"])
    assert (
        len({key(), key(image="b.png"), key(conversation="Which?"), key(image=["a.png"] * 2)}) == 4
    )
    before = key()
    (folder / "a.png").write_bytes(b"another picture under the same name")
    assert key() != before


def test_a_pair_is_asked_several_times_and_without_images_once_for_all(folder: Path) -> None:
    def key(name: str, sample: int, style: MessagesOf) -> str:
        about = row({"image": name})
        about = replace(about, question="Which?", pair=QAPair("Which?", "that"), sample=sample)
        prompt = prompt_row(about, settings(folder, style))
        assert len(prompt.images) == (style is chat_prompt)
        return prompt.key

    def blind(prompt_input: PromptInput) -> Sequence[Message]:
        return [{"role": "user", "content": prompt_input.turns[-1].text}]

    assert len({key(name, n, chat_prompt) for name in ("a.png", "b.png") for n in (0, 1)}) == 4
    assert len({key(name, n, blind) for name in ("a.png", "b.png") for n in (0, 1)}) == 2


def test_a_pair_is_asked_only_once_if_the_answers_cannot_differ(folder: Path) -> None:
    greedy = settings(folder, chat_prompt)
    greedy = replace(greedy, spec=replace(greedy.spec, sampling={"temperature": 0.0}))
    about = replace(row({"image": "a.png"}), question="Which?", pair=QAPair("Which?", "that"))
    keys = {prompt_row(replace(about, sample=sample), greedy).key for sample in (0, 1)}
    assert len(keys) == 1


def test_an_answer_that_a_row_has_is_in_its_key_and_no_other_key_changes(folder: Path) -> None:
    plain = settings(folder)
    columns = plain.columns.model_copy(update={"answer": "gold"})

    def prompt(settings: PromptSettings, sample: int = 0, **record: Any) -> Prompt:
        asked = row({"image": "a.png", "conversation": "Which?", **record})
        return prompt_row(replace(asked, sample=sample), settings)

    with_answers = replace(plain, columns=columns)
    unanswered = [prompt(with_answers, gold=gold) for gold in (None, "", " ")]
    assert {found.key for found in unanswered} == {prompt(plain).key}
    assert {found.given_answer for found in unanswered} == {""}
    keys = {prompt(with_answers, gold=gold).key for gold in ("this", "that", "1")}
    assert len(keys | {prompt(plain).key}) == 4
    given = [prompt(with_answers, sample, gold=gold) for sample, gold in enumerate((1, 1.0, "1"))]
    assert {found.given_answer for found in given} == {"1"}
    assert len({found.key for found in given}) == 1
    elsewhere = replace(
        with_answers, system_prompt="", user_prompt="", style=style_of(lambda _: [], "x")
    )
    assert prompt(elsewhere, gold="this").key in keys


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (["this"], "the answer in column 'gold' is a list; give one text"),
        (True, "the answer in column 'gold' is a bool; give one text"),
        ("a" * 100_001, "the answer in column 'gold' has 100,001 characters, more than 100,000"),
    ],
    ids=["list", "bool", "long"],
)
def test_what_is_no_answer(gold: Any, message: str, folder: Path) -> None:
    plain = settings(folder)
    columns = plain.columns.model_copy(update={"answer": "gold"})
    record = {"image": "a.png", "conversation": "Which?", "gold": gold}
    assert prompt_row(row(record), replace(plain, columns=columns)).problem == Problem(
        Kind.BAD_ROW, message
    )


def test_without_an_image_column_no_image_is_sent(folder: Path) -> None:
    prompt = prompt_row(row({"image": "nowhere.png"}), settings(folder, image_key=None))
    assert prompt.problem is None
    assert prompt.images == ()
    assert prompt.messages[-1] == {"role": "user", "content": "ASK"}


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({}, Kind.NO_IMAGE, "no image in column 'image'"),
        ({"image": None}, Kind.NO_IMAGE, "no image in column 'image'"),
        ({"image": []}, Kind.NO_IMAGE, "no image in column 'image'"),
        ({"image": "none.png"}, Kind.IMAGE_MISSING, "there is no file 'none.png'"),
        ({"image": "ftp://host/a.png?key=s"}, Kind.IMAGE_REFUSED, "not fetched"),
        ({"image": "data:;base64," + "A" * 1336}, Kind.IMAGE_TOO_LARGE, "larger than the limit"),
        ({"image": 5}, Kind.BAD_ROW, "the image column holds a int"),
        ({"image": "a.png", "conversation": 5}, Kind.BAD_ROW, "not a list"),
        ({"image": "a.png", "conversation": "<image><image>"}, Kind.BAD_ROW, "has 2 <image>"),
    ],
)
def test_an_unusable_row_becomes_a_prompt_with_a_problem(
    record: dict[str, Any], kind: Kind, message: str, folder: Path
) -> None:
    prompt = prompt_row(row(record), settings(folder))
    assert prompt.problem is not None
    assert prompt.problem.kind is kind
    assert message in prompt.problem.message
    assert (prompt.messages, prompt.images) == ((), ())
    assert prompt.key == problem_key(row(record))
    assert prompt.key != prompt_row(row(record, index=4), settings(folder)).key


def part(reference: Any, kind: str = "image") -> dict[str, Any]:
    return {"type": kind, kind: reference}


@pytest.mark.parametrize(
    ("record", "images", "content"),
    [
        (
            {"messages": [{"role": "user", "content": [part("a.png"), text("Who?")]}]},
            "a",
            [image(0), text("Who?")],
        ),
        (
            {"messages": [{"role": "user", "content": [text("Who?"), part("b.png")]}]},
            "b",
            [text("Who?"), image(0)],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [part({"url": "b.png"}, "image_url"), text("x")]},
                    {"role": "assistant", "content": [text("y"), part("a.png")]},
                ]
            },
            "b",
            [image(0), text("x")],
        ),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image"}, part("b.png")]}],
                "images": ["a.png"],
            },
            "ab",
            [image(0), image(1), text("ASK")],
        ),
        (
            {
                "messages": [{"role": "user", "content": [text("Who?"), part("a.png")]}],
                "images": ["a.png"],
            },
            "a",
            [text("Who?"), image(0)],
        ),
        (
            {
                "messages": [{"role": "user", "content": [text("Who?"), part("a.png")]}],
                "images": ["b.png"],
            },
            "ba",
            [image(0), text("Who?"), image(1)],
        ),
        (
            {"messages": [{"role": "user", "content": "<image>\n<image> Who?"}], "images": "a.png"},
            "",
            "2 <image> placeholders, but the row has 1 images",
        ),
        (
            {"messages": [{"role": "user", "content": [part("file:///a.png"), text("x")]}]},
            "",
            "file:// images are not fetched",
        ),
        (
            {"messages": [{"role": "user", "content": [part(["a.png", "b.png"])]}]},
            "",
            "an image in the conversation is 2 images",
        ),
        ({"messages": [{"role": "user", "content": "Who?"}]}, "", "no image in column 'images'"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "index": 1}, text("Who?")]}
                ],
                "images": ["a.png", "b.png"],
            },
            "ab",
            [image(0), image(1), text("Who?")],
        ),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image", "index": 2}]}],
                "images": ["a.png"],
            },
            "",
            "has image 2 (from 0), but the row has 1",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "<image>Which is like it?"},
                    {"role": "assistant", "content": "<image> is"},
                ],
                "images": ["a.png", "b.png"],
            },
            "a",
            [image(0), text("Which is like it?")],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": [part("a.png")]},
                    {"role": "user", "content": "Who?"},
                ],
                "images": ["a.png"],
            },
            "",
            "an image in a system turn",
        ),
        (
            {"messages": [{"role": "user", "content": [part("a.png")] * 99}], "images": ["b.png"]},
            "",
            "the row has 99 images, more than max_images (3)",
        ),
    ],
    ids=[
        *("qwen", "after the text", "openai", "both", "same image", "another image"),
        *("too few", "file URL", "list", "none", "index", "no such index", "of the answer"),
        *("system", "too many"),
    ],
)
def test_images_of_the_conversation_stay_in_their_place(
    record: dict[str, Any], images: str, content: list[dict[str, Any]] | str, folder: Path
) -> None:
    prompt = prompt_row(row(record), settings(folder, chat_prompt, "images", "messages"))
    if isinstance(content, str):
        assert prompt.problem
        assert content in prompt.problem.message
        return
    assert prompt.problem is None
    assert [ref.path for ref in prompt.images] == [str(folder / f"{name}.png") for name in images]
    assert prompt.messages[1] == {"role": "user", "content": content}


def test_lists_in_texts_are_read(folder: Path) -> None:
    record = {
        "image": "['a.png', 'b.png']",
        "conversation": "[{'from': 'human', 'value': 'Who?'}]",
    }
    prompt = prompt_row(row(record), settings(folder))
    assert prompt.messages[1] == user(image(0), image(1), text("Who?"))
    cut = prompt_row(row(record | {"conversation": "[{'from': 'hum"}), settings(folder))
    assert cut.problem
    assert cut.problem.kind is Kind.BAD_ROW
    assert "column 'conversation' looks like a list, but" in cut.problem.message


def test_an_unreadable_line_keeps_its_problem(folder: Path) -> None:
    problem = Problem(Kind.BAD_ROW, "line 4 is not JSON")
    prompt = prompt_row(Row(3, {}, "d.jsonl:4", problem), settings(folder))
    assert prompt.problem is problem
    assert prompt.where == "d.jsonl:4"


def test_a_custom_style_gets_the_record_and_may_reject_it(folder: Path) -> None:
    def by_category(prompt_input: PromptInput) -> Sequence[Message]:
        if "category" not in prompt_input.record:
            raise RowError(Kind.BAD_ROW, "no category")
        content = f"{prompt_input.system_prompt}: {prompt_input.record['category']}"
        return [user(text(content), image(0))]

    rows = [row({"image": "a.png", "category": "cats"}), row({"image": "a.png"})]
    accepted, rejected = prompt_rows.fn(rows, settings(folder, by_category))
    assert accepted.messages == (user(text("SYSTEM: cats"), image(0)),)
    assert rejected.problem == Problem(Kind.BAD_ROW, "no category")


def _refers_to_a_second_image(prompt_input: PromptInput) -> Sequence[Message]:
    return [user(image(1), text("What?"))]


def _refers_to_a_list(prompt_input: PromptInput) -> Sequence[Message]:
    return [user({"type": "image", "image": [0]})]


def _fails(prompt_input: PromptInput) -> Sequence[Message]:
    raise KeyError("caption")


def _writes_no_content(prompt_input: PromptInput) -> Sequence[Message]:
    return [{"role": "user"}]


@pytest.mark.parametrize(
    ("style", "message"),
    [
        (_refers_to_a_second_image, "refers to image 1 (from 0), but the row has 1"),
        (_refers_to_a_list, "TypeError"),
        (_fails, "KeyError: 'caption'"),
        (_writes_no_content, "'content'"),
    ],
)
def test_a_failing_style_affects_only_the_row(
    style: MessagesOf, message: str, folder: Path
) -> None:
    prompt = prompt_row(row({"image": "a.png"}), settings(folder, style=style))
    assert prompt.problem is not None
    assert prompt.problem.kind is Kind.BAD_ROW
    assert message in prompt.problem.message


def test_a_row_with_too_many_images_has_a_problem(folder: Path) -> None:
    assert prompt_row(row({"image": ["a.png"] * 3}), settings(folder)).problem is None
    prompt = prompt_row(row({"image": ["a.png"] * 4}), settings(folder))
    assert prompt.problem is not None
    assert prompt.problem.message == "the row has 4 images, more than max_images (3)"


@pytest.mark.parametrize(
    ("path", "seconds_a_look", "own_rows"),
    [("a.png", 0, 100), ("a.png", 1, prompts._PIECE), ("https://x.example/a.png", 0, 0)],
    ids=["quick disk", "slow disk", "web"],
)
def test_images_are_identified_in_threads_where_they_are_waited_for(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    seconds_a_look: int,
    own_rows: int,
) -> None:
    threads, clock = list[threading.Thread](), itertools.count(0, seconds_a_look)

    def identify(ref: ImageRef) -> str:
        threads.append(threading.current_thread())
        return f"etag:{ref}"

    prompting = settings(folder)
    monkeypatch.setattr(prompting.reader, "identify", identify)
    fake = SimpleNamespace(perf_counter=clock.__next__, process_time=lambda: 0)
    monkeypatch.setattr(prompts, "time", fake)
    rows = [row({"image": path}, number) for number in range(100)]
    assert [prompt.row for prompt in prompt_rows.fn(rows, prompting)] == list(range(100))
    assert threads.count(threading.current_thread()) == own_rows
    assert len(threads) == 100


@pytest.mark.usefixtures("prefect_server")
def test_prefect_does_not_remember_each_prompt(folder: Path) -> None:
    rows = [row({"image": "a.png", "conversation": f"{number}?"}) for number in range(300)]

    @flow
    def prompted() -> int:
        found = list(prompt_rows.submit(quote(rows), quote(settings(folder))).result())
        assert len({prompt.key for prompt in found}) == 300
        context = FlowRunContext.get()
        assert context is not None
        return len(context.run_results)

    assert prompted() < 10
