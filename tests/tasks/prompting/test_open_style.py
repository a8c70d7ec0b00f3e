import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.serving.types import Message
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.loading.conversations import Turn
from prefect_imageqa.tasks.prompting.chat import chat_prompt
from prefect_imageqa.tasks.prompting.open_style import (
    OpenStyle,
    StyleLike,
    StyleSettings,
    open_style,
    recorded_style,
    style_names,
)
from prefect_imageqa.tasks.prompting.style import PromptInput, Rendered
from prefect_imageqa.tasks.prompting.templates import Template
from prefect_imageqa.tasks.records import ReplyForm, RowError

HEAD = "name: mine\nversion: 3\ndescription: My own.\nreply: pairs\n"
PAIR = "Reply in this form:\n\n**Question:** <question>\n**Answer:** <answer>"

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a style file; gives its path."""

    def write(body: str, head: str = "", name: str = "mine") -> str:
        path = tmp_path / f"{name}.md"
        path.write_text(f"---\n{HEAD}{head}---\n{body}")
        return str(path)

    return write


def render(
    named: StyleLike, /, images: int = 1, turns: Sequence[Turn] = (), **record: Any
) -> Rendered:
    return row(open_style(named, StyleSettings()), images, turns=turns, **record)


def row(
    style: OpenStyle, images: int = 1, sample: int = 0, turns: Sequence[Turn] = (), **record: Any
) -> Rendered:
    ids = (f"sha256:{record.get('image')}",) * images
    return style.style(PromptInput(tuple(turns), images, "SYSTEM", "ASK", record, sample, ids))


def text_of(rendered: Rendered) -> str:
    content = rendered.messages[-1]["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])


def test_a_style_file_becomes_messages(write: Write) -> None:
    path = write(
        "# system\nBe {{ a.b }}.\n# user\nAsk about {{ caption }}.\n\n{{ reply_format }}\n"
    )
    style = open_style(path, StyleSettings())
    rendered = row(style, 2, caption="a cat", a={"b": "kind"}, other=b"", turns=[Turn("user", "x")])
    image_parts = [{"type": "image", "image": number} for number in range(2)]
    assert rendered.messages == (
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [*image_parts, {"type": "text", "text": f"Ask about a cat.\n\n{PAIR}"}],
        },
    )
    assert (rendered.asked.style, rendered.asked.form) == ("mine@3", ReplyForm.PAIRS)
    assert (style.name, style.columns, style.uses_conversation) == (
        "mine@3",
        frozenset({"a", "caption"}),
        False,
    )
    assert rendered.options == {}
    assert row(style, 0, caption="c", a={"b": 1}).messages[-1]["content"] == (
        f"Ask about c.\n\n{PAIR}"
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "the row has no column 'caption'"),
        ({"caption": b"\x89PNG"}, "column 'caption' holds an image"),
        ({"caption": ""}, "the prompt is empty"),
    ],
    ids=["missing", "image", "empty"],
)
def test_a_row_that_cannot_be_asked_about_is_named(
    record: dict[str, Any], reason: str, write: Write
) -> None:
    path = write("# user\n{{ caption }}\n")
    with pytest.raises(RowError) as caught:
        render(path, **record)
    assert str(caught.value) == f"{path}: {caught.value}".removeprefix(f"{path}: ")
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_the_style_file_of_the_docs_works(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "styles.md").read_text("utf-8")
    (tmp_path / "signs.md").write_text(docs.split("````")[1].removeprefix("markdown\n"), "utf-8")
    (tmp_path / "examples").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "examples" / "stop.png")
    style = open_style(str(tmp_path / "signs.md"), StyleSettings(language="German"))
    assert style.columns == {"ocr", "place"}
    rendered = row(style, ocr=["STOP", "No exit"], place="", n=1)
    assert (len(rendered.messages), len(rendered.images)) == (4, 1)
    assert text_of(rendered).startswith(
        "These texts were found in it:\n- STOP\n- No exit\nWrite one question about what"
    )
    assert text_of(rendered).endswith(f"\nWrite in German.\n{PAIR}")
    assert rendered.asked.type in ("text", "meaning")


def test_the_run_sets_language_difficulty_and_pairs(write: Write) -> None:
    body = "# user\n{{ pairs }} {{ difficulty }} {{ language }}: {{ reply_format }}\n"
    settings = StyleSettings(pairs=2, language="Chinese", difficulty="hard")
    rendered = row(open_style(write(body), settings), language="own", pairs=9, difficulty=0)
    assert text_of(rendered).startswith("2 hard Chinese: Reply in this form, numbered from 1 to 2:")
    assert rendered.asked.language == "Chinese"


def test_examples_come_before_the_row_with_images_after_its_own(
    write: Write, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), name * 3 and "red").save(tmp_path / f"{name}.png")
    path = write(
        "# user\nAsk.\n# examples\n## user\n![](a.png)![](b.png) {{ mood }}\n## assistant\nOne.\n"
        "## user\nNo image.\n## assistant\nTwo.\n## user\n![](c.png)\n## assistant\nThree.\n"
        "# questions\nOnly ask.\n",
        "draw:\n  mood: [gay]\n",
    )
    rendered = render(path, images=2)
    shown = [
        [part.get("image", part.get("text")) for part in message["content"]]
        if not isinstance(message["content"], str)
        else message["content"]
        for message in rendered.messages
    ]
    assert shown == [[2, 3, "gay"], "One.", "No image.", "Two.", [4, ""], "Three.", [0, 1, "Ask."]]
    assert [image.data for image in rendered.images] == [
        (tmp_path / f"{name}.png").read_bytes() for name in "abc"
    ]
    only = row(open_style(path, StyleSettings(questions_only=True)), 2)
    assert (len(only.messages), only.images) == (1, ())


def test_values_are_drawn_or_pinned() -> None:
    style = open_style("knowledge", StyleSettings())
    drawn = Counter(row(style, image=number).asked.type for number in range(600))
    assert len(drawn) == 11
    assert min(drawn.values()) > 25
    pinned = render("knowledge/chart", image=1)
    assert (pinned.asked.style, pinned.asked.type) == ("knowledge/chart@1", "chart")
    assert "Ask about the values that the chart shows." in text_of(pinned)
    kinds = {row(style, sample=sample, image=1).asked.type for sample in range(20)}
    assert len(kinds) > 3


def test_yes_and_no_are_balanced() -> None:
    style = open_style("yes-no", StyleSettings())
    verdicts = Counter("with yes," in text_of(row(style, image=number)) for number in range(1000))
    assert 430 < verdicts[True] < 570


def test_a_mix_draws_a_style_for_each_row(write: Write) -> None:
    path = write("# user\nAsk about {{ caption }}.\n")
    mix = {"short": 2.0, path: 1.0, "chat": 1.0}
    style = open_style(mix, StyleSettings(seed=5))
    assert style.name == "short@1=2, mine@3=1, chat=1"
    assert (style.uses_conversation, style.columns) == (True, frozenset({"caption"}))
    drawn = [row(style, caption=n).asked.style for n in range(400)]
    assert Counter(drawn)["short@1"] in range(160, 240)
    assert set(drawn) == {"short@1", "mine@3", "chat"}
    as_text = open_style(f" short=2,{path}=1, chat=1", StyleSettings(seed=5))
    assert [row(as_text, caption=n).asked.style for n in range(400)] == drawn
    assert as_text.digest == style.digest != open_style("short=1", StyleSettings()).digest
    other = open_style(mix, StyleSettings(seed=6))
    assert [row(other, caption=n).asked.style for n in range(400)] != drawn


def test_an_edited_file_has_another_digest(write: Write) -> None:
    before = open_style(write("# user\nAsk.\n"), StyleSettings()).digest
    assert open_style(write("# user\nAsk!\n"), StyleSettings()).digest != before
    assert open_style("chat", StyleSettings()).digest == ""


def test_questions_are_asked_and_answered_apart() -> None:
    style = open_style("short=1, knowledge=1", StyleSettings(questions_only=True, seed=1))
    assert style.answering
    for number in range(20):
        asked = row(style, image=number)
        turns, ids = (Turn("user", "How many?"),), (f"sha256:{number}",)
        answer = style.answering(PromptInput(turns, 1, "", "", {"image": number}, 0, ids))
        assert asked.asked.form is ReplyForm.QUESTIONS
        assert text_of(asked).endswith("Reply with the question only.")
        assert (answer.asked.style, answer.asked.type) == (asked.asked.style, asked.asked.type)
        assert (answer.asked.question, answer.asked.form) == ("How many?", ReplyForm.ANSWER)
        is_short = asked.asked.style == "short@1"
        ending = "\nAnswer in one to three words." if is_short else ""
        assert text_of(answer) == f"How many?{ending}"
    assert open_style("short", StyleSettings()).answering is None


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("single", "\nAnswer in French."),
        ("short", "\nAnswer in one to three words. Answer in French."),
    ],
)
def test_an_answer_is_in_the_language_of_its_question(name: str, ending: str) -> None:
    style = open_style(name, StyleSettings(questions_only=True, language="French"))
    assert style.answering
    answer = style.answering(PromptInput((Turn("user", "Qui ?"),), 0, "", "", {}))
    assert answer.messages[-1]["content"] == f"Qui ?{ending}"
    assert answer.asked.question == "Qui ?"


@pytest.mark.parametrize("name", style_names())
def test_each_built_in_style_asks_for_json(name: str) -> None:
    settings = StyleSettings(json=True)
    rendered = row(open_style(name, settings))
    *_, instruction = text_of(rendered).splitlines()
    prefix = "Reply as JSON: "
    assert instruction.startswith(prefix)
    example = json.loads(instruction.removeprefix(prefix).replace(", ...]", "]"))
    schema = rendered.options["response_format"]["json_schema"]["schema"]
    assert sorted(example) == sorted(schema["required"])
    unguided = row(open_style(name, StyleSettings(json=True, guided=False)))
    assert (unguided.options, unguided.messages) == ({}, rendered.messages)


def test_json_is_asked_for_where_a_file_does_not_say_how_to_reply(write: Write) -> None:
    settings = StyleSettings(json=True, questions_only=True)
    style = open_style(write("# user\nx\n# questions\nAsk{% if as_json %}.{% endif %}\n"), settings)
    assert text_of(row(style)) == 'Ask.\nReply as JSON: {"questions": ["...", ...]}'
    assert style.answering
    answer = style.answering(PromptInput((Turn("user", "Who?"),), 0, "", "", {}))
    assert answer.messages[-1]["content"] == 'Who?\nReply as JSON: {"answer": "..."}'


def test_a_schema_of_the_user_takes_the_place_of_the_built_in_one() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    for name in ("single", "chat"):
        rendered = row(open_style(name, StyleSettings(json=True, schema=schema)))
        assert rendered.options["response_format"]["json_schema"]["schema"] == schema
        assert text_of(rendered).endswith(json.dumps(schema))


def own_prompt(prompt_input: PromptInput) -> list[Message]:
    return [{"role": "user", "content": [{"type": "text", "text": "Own."}]}]


def test_a_function_is_a_style() -> None:
    rendered = render(own_prompt)
    assert rendered.messages == tuple(own_prompt(PromptInput((), 0, "", "", {})))
    assert rendered.asked.style.endswith("test_open_style:own_prompt")
    assert recorded_style(own_prompt) == rendered.asked.style
    assert render(chat_prompt).asked.style == render("chat").asked.style == "chat"


@pytest.mark.parametrize(
    ("named", "settings", "reason"),
    [
        ("nope", {}, "there is no style 'nope': give one of chat, caption, "),
        ("", {}, "there is no style ''"),
        ("../x", {}, "there is no style '../x'"),
        ("/etc/passwd", {}, "there is no style '/etc/passwd'"),
        ("single/x", {}, "style single has no value 'x': it draws nothing"),
        ("knowledge/x", {}, "style knowledge has no value 'x': there are objects, counting, "),
        ("none.md", {}, "none.md: not found"),
        ("~no-such-user/none.md", {}, "none.md: not found"),
        ("single=2,none.md", {}, "in a mix, also the last style needs a weight"),
        ("single=2, nope=1", {}, "there is no style 'nope'"),
        ("single=x", {}, "the weight of 'single=x' is no number"),
        ({}, {}, "a mix has 1 to 50 styles, not 0"),
        ("chat", {"language": "French"}, "put the language into the prompt"),
        ("chat=1, single=1", {"difficulty": "hard"}, "put the difficulty into the prompt"),
        (own_prompt, {"language": "French"}, "put the language into the prompt"),
        ("chat", {"questions_only": True}, "style chat cannot ask for questions only"),
        ("caption", {"questions_only": True}, "style caption cannot ask for questions only"),
        ("single=1, dialogue=1", {"questions_only": True}, "style dialogue cannot ask for"),
        ("single", {"pairs": 3}, "style single@1 asks for 1 QA pair per image, whatever the run"),
        ("single=1, short=1", {"pairs": 3}, "asks for 1 QA pair per image"),
        ("mine", {}, "does not use the language: leave it out, or write {{ language }}"),
        ("twin", {}, "its name is that of the built-in style single; choose another name"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_style_that_cannot_be_used_is_described_in_one_line(
    named: Any, settings: dict[str, Any], reason: str, write: Write, tmp_path: Path
) -> None:
    if named == "mine":
        named, settings = write("# user\nAsk.\n"), {"language": "French"}
    if named == "twin":
        named = write("# user\nAsk.\n")
        Path(named).write_text(Path(named).read_text().replace("name: mine", "name: single"))
    with pytest.raises(ImageQAError) as caught:
        open_style(named, StyleSettings(**settings))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_apply_to_the_styles_of_a_mix_that_use_them() -> None:
    style = open_style("single=1, several=1", StyleSettings(pairs=4))
    texts = {
        row(style, image=number).asked.style: text_of(row(style, image=number))
        for number in range(20)
    }
    assert texts["several@1"].startswith("Write 4 different questions")
    assert texts["single@1"].endswith(PAIR)


def test_a_mix_may_pin_what_its_files_draw(write: Write) -> None:
    path = write("# user\nAsk in {{ lang }}.\n", "draw: {lang: [English, Chinese]}\n")
    mix = open_style(f"single=1, {path}/Chinese=2,{path}/English=3", StyleSettings())
    assert mix.name == "single@1=1, mine/Chinese@3=2, mine/English@3=3"


def test_a_style_may_say_the_language_of_its_pairs(write: Write) -> None:
    head = 'draw: {lang: [English, Chinese]}\nlanguage: "{{ lang }}"\n'
    path = write("# user\nAsk in {{ lang }}.\n", head)
    drawn = {render(path, image=number).asked.language for number in range(20)}
    assert drawn == {"English", "Chinese"}


def test_a_style_knows_which_of_its_variables_hide_columns(write: Write) -> None:
    body = "# user\nAsk {{ pairs }} about {{ caption }}, {{ mood }}.\n"
    path = write(body, "draw: {mood: [a]}\n")
    style = open_style(path, StyleSettings())
    assert style.columns == frozenset({"caption"})
    assert style.variables == frozenset({"pairs", "mood"})


def test_an_image_outside_the_examples_is_refused(write: Write) -> None:
    path = write("# user\n![](shape.png)\nAsk!\n")
    with pytest.raises(ImageQAError, match=r"section `# user` has an image, which belongs into"):
        open_style(path, StyleSettings())


def test_rows_with_the_same_values_are_rendered_once(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = list[str]()
    render = Template._render

    def counted(template: Template, values: Mapping[str, Any]) -> str:
        rendered.append(template.where)
        return render(template, values)

    monkeypatch.setattr(Template, "_render", counted)
    body = "# system\nBe brief.\n\n# user\nAsk in {{ lang }}.{{ language }}\n"
    drawn = open_style(write(body, "draw: {lang: [English, Chinese]}\n"), StyleSettings())
    prompts = [row(drawn, image=f"{number}.png") for number in range(200)]
    texts = Counter(map(text_of, prompts))
    assert texts.keys() == {"Ask in English.", "Ask in Chinese."}
    assert min(texts.values()) > 60
    assert len(rendered) < 10
    rendered.clear()
    body = "# system\nBe short.\n\n# user\nAsk about {{ title }}.\n"
    named = open_style(write(body), StyleSettings())
    assert {text_of(row(named, title=f"{number}")) for number in range(50)} == {
        f"Ask about {number}." for number in range(50)
    }
    assert 50 <= len(rendered) < 60, "what has no column is rendered once"
