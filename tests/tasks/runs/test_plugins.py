import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.parsing.qa_pairs import parse_qa_pairs
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.runs import plugins
from prefect_imageqa.tasks.runs.plugins import find_parser, import_parser


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
        *("", ":", "qa-pairs", "json", "json:", "os:system", "builtins:exec", "a..b:parse"),
        "prefect_imageqa.tasks.parsing.qa_pairs:parse_qa_pairs",
        "my_module:do",  # only the beginning, or another spelling, of what is allowed
        "my_module:do_it ",
        "my_module: do_it",
        "MY_MODULE:do_it",
    ],
)
def test_a_name_never_imports_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOWED_VARIABLE, "my_module:do_it")
    monkeypatch.setattr(plugins, "importlib", None)
    with pytest.raises(ImageQAError) as raised:
        find_parser(name)
    known = ", ".join(sorted(plugins.PARSERS))
    assert str(raised.value) == (
        f"there is no parser {name.strip()!r}: give one of {known}, or in "
        "Python the function itself; PREFECT_IMAGEQA_ALLOWED_PLUGINS allows functions by name"
    )


def test_an_operator_allows_functions_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:Parsers.static"
    monkeypatch.setenv(plugins.ALLOWED_VARIABLE, f"other:parse\n{name}")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[shout.__module__])
    assert find_parser(name) == (name, Parsers.static)
    with pytest.raises(ImageQAError, match=r"cannot load the parser 'other:parse' \(No module"):
        find_parser("other:parse")


def test_a_package_registers_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real distribution on the path: its entry points are read from its metadata."""
    (tmp_path / "boxes.py").write_text("def parse(text):\n    return []\n")
    metadata = tmp_path / "boxes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: boxes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[prefect_imageqa.plugins]\nparser.boxes = boxes:parse\nparser.broken = boxes:no\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name, parse = find_parser("boxes")
    assert name == "boxes:parse"  # as if the function itself was given
    assert find_parser(parse) == (name, parse)
    with pytest.raises(ImageQAError, match="no parser 'other': give one of answer, boxes, "):
        find_parser("other")
    with pytest.raises(ImageQAError, match="cannot load the parser 'boxes:no'"):
        find_parser("broken")


def test_a_person_at_a_terminal_may_name_code() -> None:
    assert import_parser("json:loads") is json.loads
    assert import_parser("qa_pairs") == "qa_pairs"


@pytest.mark.parametrize("name", ["no_such_module:parse", "json:nope", "os:name", ".relative:x"])
def test_code_that_does_not_exist_is_reported_in_one_line(name: str) -> None:
    with pytest.raises(ImageQAError) as raised:
        import_parser(name)
    assert str(raised.value).startswith(f"cannot load the parser {name!r} (")
    assert "\n" not in str(raised.value)


def test_a_function_of_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another script is also called __main__, and its function may be a different one.
    monkeypatch.setattr(parse_twice, "__module__", "__main__")
    with pytest.raises(ImageQAError, match="must be a function of an importable module"):
        find_parser(parse_twice)


def parse_twice(text: str) -> list[QAPair]:
    return [QAPair(text, text)] * 2
