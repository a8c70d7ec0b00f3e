from functools import partial
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.parsing.text import parse_qa_pairs
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


def test_what_is_built_in_has_a_short_name() -> None:
    assert find_parser("qa_pairs") == ("qa_pairs", parse_qa_pairs)
    assert find_parser(parse_qa_pairs) == ("qa_pairs", parse_qa_pairs)
    assert find_prompt_style("chat") == ("chat", chat_prompt)
    assert find_prompt_style(chat_prompt) == ("chat", chat_prompt)


def test_what_is_imported_by_name_is_called_by_that_name() -> None:
    named = "prefect_imageqa.tasks.prompting.prompts:chat_prompt"
    assert find_prompt_style(named) == (named, chat_prompt)


def test_a_function_of_ones_own_is_named_by_its_module() -> None:
    assert find_parser(shout) == (f"{__name__}:shout", shout)
    assert find_parser(Parsers.static) == (f"{__name__}:Parsers.static", Parsers.static)


@pytest.mark.parametrize(
    "function",
    [lambda text: shout(text), partial(shout), Parsers()],
    ids=["lambda", "partial", "instance"],
)
def test_what_has_no_lasting_name_is_refused(function: Any) -> None:
    with pytest.raises(ImageQAError, match="must be a function defined in a module"):
        find_parser(function)


def test_a_function_within_a_function_has_no_lasting_name() -> None:
    def inner(text: str) -> list[QAPair]:
        return shout(text)

    with pytest.raises(ImageQAError, match="must be a function defined in a module"):
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
def test_a_name_that_is_nothing_is_one_clear_line(name: str) -> None:
    with pytest.raises(ImageQAError) as raised:
        find_parser(name)
    assert str(raised.value).startswith(f"there is no parser {name!r} (")
    assert "built in are qa_pairs" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ImageQAError, match="there is no prompt style"):
        find_prompt_style(name)


def test_a_function_of_a_script_has_no_name_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The next script is called __main__, too, and its function may do something else.
    monkeypatch.setattr(parse_twice, "__module__", "__main__")
    with pytest.raises(ImageQAError, match="in a module that can be imported"):
        find_parser(parse_twice)


def parse_twice(text: str) -> list[QAPair]:
    return [QAPair(text, text)] * 2
