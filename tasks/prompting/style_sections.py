"""The parts of a style file: its head, its sections, and the turns of its examples."""

from collections.abc import Iterator
from itertools import cycle, pairwise

from markdown_it import MarkdownIt

from ...serving.printable import printable
from ..errors import ImageQAError

SECTIONS = ("system", "user", "questions", "answer", "examples")

_FENCE = "---"
# Tags such as <rules> are text for the model, and no HTML in which headings do not count. What is
# inside paragraphs does not matter.
_MARKDOWN = MarkdownIt("commonmark").disable(["html_block", "inline"])

Section = tuple[str, int, list[str]]
"""Its title, the line of the file in which its text begins, and its lines."""


def split_head(text: str, where: str) -> tuple[str, int, list[str]]:
    """The YAML head, the line of the file after it, and the lines from there.

    Raises:
        ImageQAError: there is none.
    """
    lines = text.split("\n")
    ends = [number for number, line in enumerate(lines) if line.rstrip() == _FENCE][:2]
    if len(ends) < 2 or ends[0] != 0:
        raise ImageQAError(f"{where} is no style: it must begin with a head between lines of ---")
    after = ends[1] + 1
    return "\n".join(lines[1 : after - 1]), after + 1, lines[after:]


def split_sections(lines: list[str], first: int, where: str) -> dict[str, Section]:
    """The sections of a style file by their titles.

    Raises:
        ImageQAError: one is unknown, empty, or there twice, or there is no `# user`.
    """
    found: dict[str, Section] = {}
    for title, line, content in parts_of(lines, first, 1):
        if not title and "".join(content).strip():
            raise ImageQAError(f"{where}, line {line}: text before the first section")
        if not title:
            continue
        if title not in SECTIONS or title in found:
            wrong = "there twice" if title in found else f"none of {', '.join(SECTIONS)}"
            raise ImageQAError(
                f"{where}, line {line - 1}: section `# {printable(title, 40)}` is {wrong}; "
                "a heading inside a prompt needs ##"
            )
        if not "".join(content).strip():
            raise ImageQAError(f"{where}, line {line - 1}: section `# {title}` is empty")
        found[title] = (title, line, content)
    if "user" not in found:
        raise ImageQAError(f"{where} has no section `# user`")
    return found


def split_turns(section: Section, where: str) -> list[Section]:
    """The turns of the section `# examples`: user and assistant in turn.

    Raises:
        ImageQAError: they do not alternate, or one is empty.
    """
    _, first, lines = section
    turns = [turn for turn in parts_of(lines, first, 2) if turn[0] or "".join(turn[2]).strip()]
    for (title, line, content), role in zip(turns, cycle(("user", "assistant")), strict=False):
        if title != role:
            is_shown = f"`## {printable(title, 40)}`" if title else "text without a heading"
            raise ImageQAError(
                f"{where}, line {line - bool(title)}: {is_shown} where an example needs `## {role}`"
            )
        if not "".join(content).strip():
            raise ImageQAError(f"{where}, line {line - 1}: `## {title}` of an example is empty")
    if len(turns) % 2:
        raise ImageQAError(f"{where}, line {first}: the last example has no `## assistant`")
    return turns


def parts_of(lines: list[str], first: int, level: int) -> Iterator[Section]:
    """The text before the first heading of a level, without a title, and that of each heading."""
    title, begin = "", 0
    for number, heading in [*_headings(lines, level), (len(lines), "")]:
        yield title, first + begin, lines[begin:number]
        title, begin = heading, number + 1


def _headings(lines: list[str], level: int) -> Iterator[tuple[int, str]]:
    """The headings of a level outside of code: line (from 0) and text."""
    tokens = _MARKDOWN.parse("\n".join(lines))
    for token, content in pairwise(tokens):
        is_heading = token.type == "heading_open" and token.markup == "#" * level
        if is_heading and token.map and token.level == 0:
            yield token.map[0], content.content
