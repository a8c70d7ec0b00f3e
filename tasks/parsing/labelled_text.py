# ruff: noqa: RUF001 (labels in Chinese have fullwidth punctuation)
"""Question-answer pairs from labelled text: `**Question:** ...`, `Q1. ...`, `Antwort: ...`."""

import re
from collections.abc import Iterator, Sequence
from re import Match
from typing import NamedTuple

from ..records import QAPair
from .extras import Extras, extra_labels, named
from .found_pairs import FoundPairs
from .labels import (
    ANSWER_LETTERS,
    ANSWER_OR_LETTER,
    NUMBER,
    QUESTION_LETTERS,
    QUESTION_OR_LETTER,
    TURN_WORDS,
    alternatives,
    line_label,
)
from .wrappers import trim

_LINE_LABEL = line_label(question=QUESTION_OR_LETTER, answer=ANSWER_OR_LETTER)
_TURN_LABEL = line_label(question=alternatives(TURN_WORDS[0]), answer=alternatives(TURN_WORDS[1]))

_INLINE_LABEL = re.compile(
    rf"""
    (?P<before>[?？؟.!。！…;；|]) ["'”’»)）*_]{{0,4}}+ \s*+    # the end of a sentence
    (?P<label>
      (?P<heading>(?!))?                                         # as in `line_label`
      (?P<emphasis>\*{{1,3}}|_{{1,3}})?
      (?: (?P<question>{QUESTION_OR_LETTER}) | (?P<answer>{ANSWER_OR_LETTER}) )
      [^\S\n]*+ (?P<number>[(（\#]?{NUMBER}[)）]?)?
      (?: (?P=emphasis) [^\S\n]*+ [:：] | [^\S\n]*+ [:：] (?:[^\S\n]*(?P=emphasis))? )
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAX_CHOICE = 200
"""Characters within which the second of several choices follows the first."""

_CHOICES = re.compile(r"(?<!\w)[BbＢ][:：.)]")
_CHOICE_BELOW = re.compile(r"[^\n]*+\s*+[-+*•>_(（【\[ \t]*+[BbＢ][*_]*+[:：.)）\]】]")


_LETTERS = {*QUESTION_LETTERS, *ANSWER_LETTERS}


class _Label(NamedTuple):
    """A label in a text.

    Attributes:
        start: where it starts.
        end: where its value starts.
        is_question: whether it is one of a question.
        is_letter: whether its word is a single letter, such as "Q".
        has_number: whether it has a number.
        match: of the regular expression that found it.
    """

    start: int
    end: int
    is_question: bool
    is_letter: bool
    has_number: bool
    match: Match[str]


def labelled_pairs(text: str) -> FoundPairs:
    """The pairs in labelled lines.

    Labels count at the start of a line. If an answer has none there, they also count in the line
    of its question, at the end of a sentence. An answer extends to the next question's label.
    """
    labels = [_label(match, match.start()) for match in _LINE_LABEL.finditer(text)]
    if not any(label.is_question for label in labels):
        return FoundPairs([])
    lines = list(_without_choices(text, labels))
    return _pairs(text, list(_without_quarters(list(_with_inline_labels(text, lines)))))


def _label(match: Match[str], start: int) -> _Label:
    question, answer, number = match.group("question", "answer", "number")
    is_letter = (question or answer).casefold() in _LETTERS
    return _Label(start, match.end(), question is not None, is_letter, number is not None, match)


def _without_choices(text: str, labels: Sequence[_Label]) -> Iterator[_Label]:
    """The labels without each "A:" above a line "B:" if another answer follows."""
    for label, following in zip(labels, [*labels[1:], None], strict=False):
        is_bare = label.is_letter and not label.has_number and not label.is_question
        has_answer = following is not None and not following.is_question
        if not (is_bare and has_answer and _CHOICE_BELOW.match(text, label.end)):
            yield label


def _with_inline_labels(text: str, labels: Sequence[_Label]) -> Iterator[_Label]:
    """The labels, with those within a line after each question without an answer."""
    for label, following in zip(labels, [*labels[1:], None], strict=False):
        yield label
        is_answered = following is not None and _may_answer(following, label)
        if label.is_question and not is_answered:
            end = len(text) if following is None else following.start
            yield from _inline_labels(text, label, end)


def _without_quarters(labels: Sequence[_Label]) -> Iterator[_Label]:
    """The labels without those like "Q1:" in an answer that lists the quarters of a year.

    They differ from the label of the first question, and have no answers.
    """
    first = next((label for label in labels if label.is_question), None)
    for label, following in zip(labels, [*labels[1:], None], strict=False):
        if first is not None and label.is_question and label.is_letter and label.has_number:
            is_other = not (first.is_letter and first.has_number)
            if is_other and (following is None or not _may_answer(following, label)):
                continue
        yield label


def _inline_labels(text: str, question: _Label, end: int) -> Iterator[_Label]:
    expects_answer = True
    for match in _INLINE_LABEL.finditer(text, question.end, end):
        label = _label(match, match.start("label"))
        if label.is_question is expects_answer:
            continue
        if expects_answer:
            if not _may_answer(label, question):
                continue
            if label.is_letter and not label.has_number:  # the first of several choices?
                line = text[label.end : label.end + _MAX_CHOICE].partition("\n")[0]
                if match["before"] not in {"?", "？", "؟"} or _CHOICES.search(line):
                    continue
        else:
            question = label
        expects_answer = not expects_answer
        yield label


def _may_answer(answer: _Label, question: _Label) -> bool:
    """A bare "A:" answers only a "Q:": under "Question:" it is the first of several choices."""
    return not answer.is_question and (question.is_letter or not answer.is_letter)


def turn_pairs(text: str) -> FoundPairs:
    """The pairs of a dialogue whose turns are labelled by who speaks: `User:`, `**Assistant:**`."""
    return _pairs(text, [_label(match, match.start()) for match in _TURN_LABEL.finditer(text)])


def value_after(text: str, label: Match[str], end: int) -> tuple[str, Extras]:
    """The value of a label, which is a match of `line_label`, and what follows about the pair."""
    return _value(text, _label(label, label.start()), end, before_question=False)


def _pairs(text: str, labels: Sequence[_Label]) -> FoundPairs:
    pairs, lost = [], 0
    first = next((label for label in labels if label.is_question), None)
    if first is None:
        return FoundPairs([])
    # Where a type stands above the first question, each belongs to the question below it.
    top = first._replace(start=0, end=0)
    above = _value(text, top, first.start, before_question=False)[1] if first.start else Extras()
    comes_first = "type" in above or "language" in above
    before_gap: int | None = None
    question: _Label | None = None
    answer: _Label | None = None
    for label in (*labels, None):
        if label is not None and not label.is_question:
            if question is not None and answer is None and _may_answer(label, question):
                answer = label
            continue
        # The next question's label, or the end of the text, ends the pair before it.
        end = len(text) if label is None else label.start
        if question is not None:
            has_next = label is not None
            first_end = end if answer is None else answer.start
            last = has_next and answer is None
            asked, extras = _value(text, question, first_end, before_question=last)
            said, below = "", Extras()
            if answer is not None:
                said, below = _value(text, answer, end, before_question=has_next)
            extras |= below
            if comes_first:
                extras["type"] = above.get("type", "")
                extras["language"] = above.get("language", "")
            if asked and said:
                pairs.append(QAPair(asked, said, **extras))
            elif asked or said:
                lost += 1
                before_gap = len(pairs) if before_gap is None else before_gap
            above = below
        question, answer = label, None
    return FoundPairs(pairs, lost, before_gap=before_gap)


def _value(text: str, label: _Label, end: int, *, before_question: bool) -> tuple[str, Extras]:
    """The text after a label, without the decoration around it, and what follows about the pair."""
    extras = extra_labels(text, label.end, end, label.match)
    first_end = extras[0].start if extras else end
    value = _tidied(text[label.end : first_end], before_question=before_question)
    emphasis = label.match["emphasis"]
    if emphasis and emphasis not in text[label.match.end("emphasis") : label.match.end()]:
        value = value.removesuffix(emphasis)  # **Question: all of it in bold**
    if value.count("|") == 1:
        value = value.removesuffix("|")  # Question: ... | Answer: ...
    if not extras:
        return trim(value), Extras()
    ends = [*(extra.start for extra in extras[1:]), end]
    values = [
        (extra.field, _tidied(text[extra.end : until], before_question=before_question))
        for extra, until in zip(extras, ends, strict=True)
    ]
    return trim(value), named(values)


def _tidied(value: str, *, before_question: bool) -> str:
    """A value without the rules, titles and ends of fences below it."""
    lines = value.strip().split("\n")
    if lines[-1].endswith("**") and value.count("**") == 1:
        lines[-1] = lines[-1].removesuffix("**")  # **Reasoning: all of it in bold**
    fences = "```" in value and sum(line.lstrip().startswith("```") for line in lines)
    open_fence = fences % 2 == 1
    while lines:
        last = lines[-1].strip()
        if open_fence and last and not last.strip("`"):
            open_fence = False  # it closes a fence that was opened before the label
        elif last and not _RULE.fullmatch(last):
            is_title = before_question and len(lines) > 1 and _TITLE.fullmatch(last)
            if not is_title:
                break
        lines.pop()
    return "\n".join(lines).strip()


_RULE = re.compile(r"([-*_=~])(?:[ \t]*+\1){2,}+|\*\*|__")
_TITLE = re.compile(  # "### Second pair", "**Pair 2:**": belongs to the question below it
    r"\#{1,6}[ \t].*"
    r"|[*_]*+(?:QA|Q&A)?[ \t]*+(?:pair|example|item|turn|round)[ \t]*+\#?\d{1,3}[.:]?[*_]*+:?"
    r"|[*_]*+第[ \t]*+[\d一二三四五六七八九十]{1,3}[ \t]*+[轮輪组組对對][^\n]{0,8}",
    re.IGNORECASE,
)
