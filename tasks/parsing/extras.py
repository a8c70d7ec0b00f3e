# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""What a reply says about a pair under a label of its own: its type, language and reasoning."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from .labels import (
    LANGUAGE_WORDS,
    OTHER_WORDS,
    REASONING_WORDS,
    TYPE_WORDS,
    alternatives,
    line_label,
)

FIELDS: Mapping[str, tuple[str, ...]] = {
    "type": TYPE_WORDS,
    "language": LANGUAGE_WORDS,
    "reasoning": REASONING_WORDS,
    "other": OTHER_WORDS,
}
"""What a reply may say about a pair -> the words for it."""

_MAX_SHORT = 60
"""Characters of a type or language; anything longer is text of the answer."""

_NEAR = 300
"""Characters before a label in which the line above it is looked for."""

_LABEL = line_label(**{field: alternatives(words) for field, words in FIELDS.items()})
_LIST_MARK = re.compile(r"\s*+(?:>\s*+)*+[-+*•]\s")
_LISTED = re.compile(r"[^\w\n]{0,6}+\w[\w \t]{0,30}[:：][^\S\n]*+\S")
"""A line like "Name: Anna": below it, a "Type: passport" belongs to the same list."""


class Extras(TypedDict, total=False):
    """Fields of a pair beside its question and answer."""

    type: str
    language: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class ExtraLabel:
    """A label of one of these fields.

    Attributes:
        field: name of the field.
        start: where the label starts.
        end: where its value starts.
    """

    field: str
    start: int
    end: int


def extra_labels(text: str, start: int, end: int, own: re.Match[str]) -> list[ExtraLabel]:
    """The labels within a question or an answer that begin something about the pair.

    The first of them ends the question or answer. A label counts only if it cannot be a line of a
    list that belongs to the text: "Name: Anna", "Type: passport".

    Args:
        text: the reply.
        start: where the question or answer starts in it.
        end: where it ends.
        own: its own label. If that is emphasised or a heading, those should be, too; unless it has
            the mark of a list, those should have none.
    """
    matches = list(_LABEL.finditer(text, start, end))
    if not matches:
        return []
    is_marked = bool(own["emphasis"] or own["heading"])
    is_listed = _LIST_MARK.match(own[0]) is not None
    if _are_lines_of_a_list(text, start, matches, is_listed=is_listed):
        return []
    labels: list[ExtraLabel] = []
    for match, following in zip(matches, [*matches[1:], None], strict=False):
        field = next(name for name in FIELDS if match[name])
        if not labels and not _stands_alone(text, start, match, is_marked=is_marked):
            continue
        value = text[match.end() : end if following is None else following.start()]
        if field == "reasoning" or _is_short(value):
            labels.append(ExtraLabel(field, match.start(), match.end()))
    return labels


def _are_lines_of_a_list(
    text: str, start: int, labels: Sequence[re.Match[str]], *, is_listed: bool
) -> bool:
    """Whether the text itself introduces what looks like labels, lists them or repeats one."""
    above = text[max(start, labels[0].start() - _NEAR) : labels[0].start()].rstrip(" \t\n*_")
    words = [_word(label) for label in labels]
    return (
        above.endswith((":", "："))
        or len(set(words)) < len(words)
        or (not is_listed and any(_LIST_MARK.match(label[0]) for label in labels))
    )


def _word(label: re.Match[str]) -> str:
    return next(word for field in FIELDS if (word := label[field])).casefold()


def _stands_alone(text: str, start: int, match: re.Match[str], *, is_marked: bool) -> bool:
    if match["heading"] or match["bracket"]:
        return True
    if is_marked and not match["emphasis"] and not match["reasoning"]:
        return False
    above = text[max(start, match.start() - _NEAR) : match.start()].rstrip().rpartition("\n")[2]
    is_like_it = match["emphasis"] is None or above.lstrip(" -+•").startswith(match["emphasis"])
    return not (is_like_it and _LISTED.match(above))


def _is_short(value: str) -> bool:
    value = value.strip(" \t\n*_-=`")
    return 0 < len(value) <= _MAX_SHORT and "\n" not in value


def named(values: Iterable[tuple[str, str]]) -> Extras:
    """Field names and texts as fields of a pair; the first of each counts."""
    extras: Extras = {}
    for field, value in values:
        if field == "type":
            extras.setdefault("type", short(value).lower())
        elif field == "language":
            extras.setdefault("language", short(value))
        elif field == "reasoning":
            extras.setdefault("reasoning", value)
    return extras


def short(value: str) -> str:
    """A type or language without its decoration; empty if it is no single short line."""
    value = value.strip().strip("*_`\"'.。").strip()
    return value if len(value) <= _MAX_SHORT and "\n" not in value else ""
