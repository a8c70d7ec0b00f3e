# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""Multiple choice: the options below a question, and the one that its answer means."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...serving.printable import printable
from ..records import QAPair
from .choices import LETTERS, MARK, choice_in, normal
from .labels import OPTIONS_WORDS, alternatives

_LINE = re.compile(
    rf"""
    [^\S\n]*+ (?:>[^\S\n]*+)*+ (?:[-+*•][^\S\n]++)?+ (?P<emphasis>\*{{1,3}}|_{{1,3}})?
    [(\[（【]?+ (?P<mark>{MARK}) (?P=emphasis)?
    (?: [)\]）】]?+[.．:：、)）,](?P=emphasis)? | [)\]）】](?P=emphasis)? | [^\S\n]++[-–—][^\S\n]++
      | (?<=[①-⑩]) )
    [^\S\n]*+ (?P<text>\S.*)
    """,
    re.VERBOSE,
)
_INLINE = re.compile(
    r"(?:[(\[（]|(?<![A-Za-z0-9.]))(?:(?P<upper>[A-J])[)\]）.．:：、]|(?P<lower>[a-j])[)）])\s*+"
)
_SECOND = re.compile(r"[Bb][)\]）.．:：、]")
"""What a line of options has at least, and few questions without options do."""

_HEADER = re.compile(
    rf"[\s>#*_-]*+(?:{alternatives(OPTIONS_WORDS)})[*_]*+[^\S\n]*+(?:[:：][*_]*+(?P<list>.*))?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"[^\S\n]*+[-+*•][^\S\n]++(?P<text>\S.*)")
_IS_RIGHT = re.compile(
    r"[\s*_]*+(?:[✓✔✅☑]️?|[(（](?:correct|right|正确|正確)[^()（）]{0,20}[)）])[\s*_]*+\Z",
    re.IGNORECASE,
)
_NEAR = 40
"""Characters at the end of an option in which it may be ticked."""

CONTRADICTION = "ticks one option and names another as right"

_SENTENCE_END = tuple("?？؟.。:：!！)）…”\"'*")
_SEPARATORS = " \t\n,，;；|/、"
_JOINED = re.compile(r"(?:\s(?:or|and|ou|o|oder)|或|和)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choices:
    """A question and its options.

    Attributes:
        question: without its options.
        options: their texts, in order.
        marks: what stands before each of them.
        right: the option that is ticked, if one is.
    """

    question: str
    options: Sequence[str]
    marks: Sequence[str] = LETTERS
    right: str = ""


def with_choice(pair: QAPair, *, required: bool) -> QAPair | str:
    """A pair whose question has options, with the right one; else why it is none.

    Args:
        pair: its options are in its question, or apart; `correct` is set if the right one is known.
        required: whether it must be multiple choice. Otherwise a pair without options stays as it
            is, and so does one whose answer is no option: its options belong to its question.
    """
    choices = (
        Choices(pair.question, pair.options)
        if pair.options
        else split_options(pair.question, digits=required)
    )
    if choices is None:
        return "has a question without options" if required else pair
    if fault := options_fault(choices.options):
        return fault if required else _glued(pair)
    if pair.correct:
        return pair
    choice = choice_in(pair.answer, choices.options, choices.marks)
    if choice is not None and choices.right not in {"", choices.options[choice.index]}:
        return CONTRADICTION
    if choice is None:
        said = printable(pair.answer, 40)
        return (
            f"gives the answer {said!r}, which is none of its options" if required else _glued(pair)
        )
    return replace(
        pair,
        question=choices.question,
        options=tuple(choices.options),
        correct=LETTERS[choice.index],
        answer=choices.options[choice.index],
        reasoning=pair.reasoning or choice.rest,
    )


def options_fault(options: Sequence[str]) -> str:
    """Why options are of no use; empty if they are."""
    if len(options) < 2:
        return "has only one option"
    if len(options) > len(LETTERS):
        return f"has more than {len(LETTERS)} options"
    if len({normal(option) for option in options}) < len(options):
        return "has the same option twice"
    return ""


def _glued(pair: QAPair) -> QAPair:
    """The pair with its options as lines of its question."""
    if not pair.options:
        return pair
    lines = [f"{mark}. {option}" for mark, option in zip(LETTERS, pair.options, strict=False)]
    few = len(pair.options) < 2 or len(pair.options) > len(LETTERS)
    question = pair.question if few else "\n".join((pair.question, *lines))
    return replace(pair, question=question, options=(), correct="")


def split_options(text: str, *, digits: bool) -> Choices | None:
    """The question and its options, which end the text; None if there are none.

    Args:
        text: a question.
        digits: whether options may be numbered, too.
    """
    lines = text.split("\n")
    found = _option_lines(lines, digits=digits) or _listed_lines(lines)
    if found is not None:
        number, marks, texts = found
        question = "\n".join(lines[:number])
    else:
        inline = _inline_options(text)
        if inline is None:
            return None
        question, texts = inline
        marks = LETTERS
    question = _without_header(question)
    ticks = [_IS_RIGHT.search(option, max(len(option) - _NEAR, 0)) for option in texts]
    options = [
        without_emphasis(option[: tick.start()] if tick else option)
        for option, tick in zip(texts, ticks, strict=True)
    ]
    if not question or not all(options):
        return None
    ticked = [option for option, tick in zip(options, ticks, strict=True) if tick]
    return Choices(question, options, marks, ticked[0] if len(ticked) == 1 else "")


def _option_lines(
    lines: Sequence[str], *, digits: bool
) -> tuple[int, Sequence[str], list[str]] | None:
    """Number of the first of the lines `A. red`, `B. blue` at the end; their marks and texts."""
    marks: list[str] = []
    texts: list[str] = []
    for number in range(len(lines) - 1, 0, -1):
        if not lines[number].strip():
            continue
        match = _LINE.fullmatch(lines[number])
        if match is None:
            return None
        mark = unicodedata.normalize("NFKC", match["mark"])
        if mark.isdigit() and not digits:
            return None
        if marks and _next(mark) != marks[-1]:
            return None
        marks.append(mark)
        texts.append(match["text"].strip().removesuffix(match["emphasis"] or "\n"))
        if mark in {"A", "a", "1"}:
            return (number, marks[::-1], texts[::-1]) if len(marks) > 1 else None
    return None


def _next(mark: str) -> str:
    return str(int(mark) + 1) if mark.isdigit() else chr(ord(mark) + 1)


def _listed_lines(lines: Sequence[str]) -> tuple[int, Sequence[str], list[str]] | None:
    """The same of `- red`, `- blue` below "Options:", or of "Options: red, blue"."""
    texts: list[str] = []
    for number in range(len(lines) - 1, 0, -1):
        if bullet := _BULLET.fullmatch(lines[number]):
            texts.append(bullet["text"].strip())
        elif lines[number].strip():
            header = _HEADER.fullmatch(lines[number])
            if header is None or bool(texts) == bool((header["list"] or "").strip()):
                return None
            if not texts:
                if (inline := _inline_options("?" + header["list"])) is not None:
                    return number, LETTERS, inline[1]
                texts = re.split(r"[,，;；、|/]", header["list"])[::-1]
            return (number, LETTERS, texts[::-1]) if len(texts) > 1 else None
    return None


def _inline_options(text: str) -> tuple[str, list[str]] | None:
    """Question and options of "Which? A. red B. blue"."""
    if not _SECOND.search(text):
        return None
    marks = list(_INLINE.finditer(text))
    for first in range(len(marks) - 2, -1, -1):
        kind = "upper" if marks[first]["upper"] else "lower"
        mark, following = marks[first][kind], marks[first + 1][kind]
        if following is None or _next(mark) != following:
            return None
        if mark in {"A", "a"}:
            break
    else:
        return None
    ends = [match.start() for match in marks[first + 1 :]] + [len(text)]
    texts = [
        _JOINED.sub("", text[match.end() : end].strip(_SEPARATORS)).strip(_SEPARATORS)
        for match, end in zip(marks[first:], ends, strict=True)
    ]
    question = text[: marks[first].start()].strip()
    # What stands below the last of them is no part of it.
    is_clear = not any("\n" in option for option in texts)
    return (question, texts) if is_clear and question.endswith(_SENTENCE_END) else None


def _without_header(question: str) -> str:
    """A question without the line "Options:" below it."""
    above, _, last = question.strip().rpartition("\n")
    header = _HEADER.fullmatch(last)
    if header is not None and not (header["list"] or "").strip():
        return above.strip()
    return question.strip()


def without_emphasis(text: str) -> str:
    """An option or a question without the emphasis around it."""
    text = text.strip()
    for emphasis in ("**", "__", "*", "_", "`"):
        is_emphasised = text.startswith(emphasis) and text.endswith(emphasis)
        if is_emphasised and len(text) > 2 * len(emphasis) and text.count(emphasis) == 2:
            text = text.removeprefix(emphasis).removesuffix(emphasis)
    return text.strip()
