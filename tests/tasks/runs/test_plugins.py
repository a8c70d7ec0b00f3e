from functools import partial
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.parsing.labelled_text import parse_qa_pairs
from prefect_imageqa.tasks.prompting.prompts import chat_prompt
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.runs.plugins import find_parser, find_prompt_style


def shout(text: str) -> list[QAPair]:
    return [QAPair("What?", text.upper())]


class Parsers:
    @staticmethod
    def static(text: str) -> list[QAPair]:
        return shout(text)

    def __call__(self, text: str) -> list[QAPair]:
        return shout(text)


def test_a_built_in_plugin_has_a_short_name() -> None:
    assert find_parser("qa_pairs") == ("qa_pairs", parse_qa_pairs)
    assert find_parser(parse_qa_pairs) == ("qa_pairs", parse_qa_pairs)
    assert find_prompt_style("chat") == ("chat", chat_prompt)
    assert find_prompt_style(chat_prompt) == ("chat", chat_prompt)


def test_a_plugin_given_by_its_import_path_keeps_that_name() -> None:
    name = "prefect_imageqa.tasks.prompting.prompts:chat_prompt"
    assert find_prompt_style(name) == (name, chat_prompt)


def test_a_custom_function_is_named_by_its_module() -> None:
    assert find_parser(shout) == (f"{__name__}:shout", shout)
    assert find_parser(Parsers.static) == (f"{__name__}:Parsers.static", Parsers.static)


@pytest.mark.parametrize(
    "function",
    [lambda text: shout(text), partial(shout), Parsers()],
    ids=["lambda", "partial", "instance"],
)
def test_a_callable_without_a_stable_name_is_refused(function: Any) -> None:
    with pytest.raises(ImageQAError, match="must be a function of an importable module"):
        find_parser(function)


def test_a_nested_function_is_refused() -> None:
    def inner(text: str) -> list[QAPair]:
        return shout(text)

    with pytest.raises(ImageQAError, match="must be a function of an importable module"):
        find_parser(inner)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "qa-pairs",
        "json",
        "json:",
        "json:nope",
        "no_such_module:parse",
        ".relative:parse",
        "a..b:parse",
        "os:name",
    ],
)
def test_an_unknown_name_is_reported_in_one_line(name: str) -> None:
    with pytest.raises(ImageQAError) as raised:
        find_parser(name)
    assert str(raised.value).startswith(f"there is no parser {name!r} (")
    assert "use a built-in one (qa_pairs) or package.module:function" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ImageQAError, match="there is no prompt style"):
        find_prompt_style(name)


def test_a_function_of_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another script is also called __main__, and its function may be a different one.
    monkeypatch.setattr(parse_twice, "__module__", "__main__")
    with pytest.raises(ImageQAError, match="must be a function of an importable module"):
        find_parser(parse_twice)


def parse_twice(text: str) -> list[QAPair]:
    return [QAPair(text, text)] * 2
