"""Replies in the forms that models write, and what each is parsed to; docs/replies.md shows them.

Run this file as a script to write that page.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.parsing.parse import QA_PAIRS, parse_completion
from prefect_imageqa.tasks.parsing.parsers import Parsed
from prefect_imageqa.tasks.records import Asked, Problem, ReplyForm

SECTIONS: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("reply_forms.yaml").read_text("utf-8")
)
PAGE = Path(__file__).parents[3] / "docs" / "replies.md"

REPLIES = {
    f"{section['section']}: {reply['name']}": (section, reply)
    for section in SECTIONS
    for reply in section["replies"]
}


@pytest.mark.parametrize(("section", "reply"), REPLIES.values(), ids=REPLIES)
def test_a_reply_is_parsed_to(section: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    asked = Asked(
        form=ReplyForm(section["form"]), **{**section.get("asked", {}), **reply.get("asked", {})}
    )
    completion = Completion(reply["reply"], "stop", 10, 5, 0.1, "model")
    parsed = parse_completion(completion, QA_PAIRS, asked)
    if "fault" in reply:
        assert isinstance(parsed, Problem)
        assert f"{reply['fault']}" in parsed.message
        assert "\n" not in parsed.message
    else:
        assert isinstance(parsed, Parsed)
        assert (parsed.value, parsed.lost) == (reply["pairs"], reply.get("lost", 0))


def test_the_table_is_large_and_has_every_form() -> None:
    assert len(REPLIES) == sum(len(section["replies"]) for section in SECTIONS) > 180
    assert {section["form"] for section in SECTIONS} == set(ReplyForm) - {ReplyForm.GIVEN}


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text("utf-8") == page(), (
        f"write docs/replies.md again: python {Path(__file__).relative_to(PAGE.parents[1])}"
    )


def page() -> str:
    """The documentation page of all replies."""
    return "\n".join(_page_lines()) + "\n"


def _page_lines() -> Iterator[str]:
    yield INTRODUCTION.format(count=len(REPLIES))
    for section in SECTIONS:
        yield f"- [{section['section']}](#{section['section'].lower().replace(' ', '-')})"
    for section in SECTIONS:
        yield f"\n## {section['section']}\n"
        if "intro" in section:
            yield section["intro"] + "\n"
        for reply in section["replies"]:
            yield from _reply_lines(reply)


def _reply_lines(reply: Mapping[str, Any]) -> Iterator[str]:
    remarks = [reply["note"]] if "note" in reply else []
    if "asked" in reply:
        remarks.append("Asked for: " + ", ".join(map(": ".join, reply["asked"].items())) + ".")
    yield " ".join([f"**{reply['name'][0].upper()}{reply['name'][1:]}.**", *remarks])
    yield f"\n````text\n{reply['reply']}\n````\n"
    if "fault" in reply:
        yield f"Unusable: it {reply['fault']}.\n"
        return
    pairs = [{name: value for name, value in pair.items() if value} for pair in reply["pairs"]]
    text = yaml.dump(pairs, Dumper=_PageDumper, allow_unicode=True, sort_keys=False, width=10_000)
    yield f"````yaml\n{text.rstrip()}\n````\n"


class _PageDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and lists of options in one line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    is_options = isinstance(values[0], str)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_options)


_PageDumper.add_representer(str, _text)
_PageDumper.add_representer(list, _list)

INTRODUCTION = """\
# How replies are read

What a model was asked for decides how its reply is read: question-answer pairs, a dialogue,
multiple choice, an answer, or questions only. Text and JSON give the same columns:

| column | what |
| --- | --- |
| `question` | without its options |
| `answer` | of multiple choice, the text of the right option |
| `type` | such as "counting": the reply's own, else the one that was asked for |
| `options` | of multiple choice, the texts of the options in order |
| `correct` | of multiple choice, the letter of the right option |
| `turn` | in a dialogue, from 1 |
| `language` | the reply's own, else the one that was asked for |
| `reasoning` | why the answer is right, if the reply says so |

Below are {count} written forms and what each of them gives; columns that are empty are left out.
A reply that cannot be used is never stored as an answer: its row is quarantined with the reason and
the raw text, after the model has been told once what is wrong.

<!-- Generated from tests/tasks/parsing/reply_forms.yaml, which is also the parser's test. -->
"""

if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
