# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""Multiple choice without a label before the question, or without one before the answer."""

import re
from itertools import takewhile

from ..records import QAPair
from .choices import choice_in, leads_to_choice
from .extras import Extras
from .found_pairs import FoundPairs
from .labelled_text import value_after
from .labels import ANSWER, QUESTION, line_label
from .multiple_choice import CONTRADICTION, Choices, split_options, without_emphasis

_LABEL = line_label(answer=ANSWER, question=QUESTION)
"""Words only: "A:" is an option here."""

_LETTER_ALONE = re.compile(r"\n[^\S\n]*+[*_(]*+([A-J])[*_).]*+\s*+\Z")
_NEAR = 40
"""Characters at the end of a reply in which such a letter is looked for."""

_NUMBER = re.compile(r"#{0,6}+\s*+\d{1,3}[.)、][*_]*+\s*+")
_NUMBERED_LINE = re.compile(r"\n[^\S\n]*+[#*_ ]*+\d{1,3}[.)、]")


def bare_choices(text: str) -> FoundPairs:
    """The questions of a reply, each with its options and which one is right.

    That is said in a line with a label, or after the only question by "The answer is B", by a
    letter in a line of its own, or by a tick.
    """
    if (above := _LABEL.match(text)) and above["question"]:
        text = text[above.end() :]
    first = next(_LABEL.finditer(text), None)
    if first is not None and first["question"]:
        return FoundPairs([])
    if first is not None:
        return _labelled(text)
    said, end = _said_below(text)
    choices = split_options(text[:end].strip(), digits=False)
    if choices is None:
        return FoundPairs([])
    return _found(choices, said, Extras())


def _said_below(text: str) -> tuple[str, int]:
    """What the last line says about the right option, and where the text before it ends."""
    if letter := _LETTER_ALONE.search(text, max(len(text) - _NEAR, 0)):
        return letter[1], letter.start()
    above, _, last = text.rstrip().rpartition("\n")
    return (last, len(above)) if above and leads_to_choice(last) else ("", len(text))


def _labelled(text: str) -> FoundPairs:
    """The questions before labelled answers: from the second, each stands below an answer."""
    labels = list(takewhile(lambda label: label["answer"], _LABEL.finditer(text)))
    pairs: list[QAPair] = []
    lost, reason = 0, ""
    start, answer = 0, labels[0]
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        end = len(text)
        if following is not None:
            cut = _next_question(text[label.end() : following.start()])
            if cut is None:
                continue  # it says more about the same question
            end = label.end() + cut
        choices = split_options(text[start : answer.start()].strip(), digits=False)
        said, extras = value_after(text, answer, end)
        found = FoundPairs([], int(start > 0)) if choices is None else _found(choices, said, extras)
        pairs += found.pairs
        lost, reason = lost + found.lost, reason or found.reason
        if following is not None:
            start, answer = end, following
    return FoundPairs(pairs, lost, reason)


def _next_question(text: str) -> int | None:
    """Where the last question in a text below an answer starts; None if there is none."""
    choices = split_options(text, digits=False)
    lines = text.rstrip().rpartition("\n")
    if choices is None:
        is_question = lines[2].rstrip("*_ ").endswith(("?", "？"))
        return len(lines[0]) if is_question else None
    start = text.index(choices.question)
    number = max((line.start() for line in _NUMBERED_LINE.finditer(choices.question)), default=-1)
    cut = max(number, choices.question.rfind("\n\n"))
    return start + max(cut if cut >= 0 else choices.question.rfind("\n"), 0)


def _found(choices: Choices, said: str, extras: Extras) -> FoundPairs:
    question = choices.question.split("\n\n")[-1].strip()
    question = without_emphasis(_NUMBER.sub("", without_emphasis(question), count=1))
    answer = said or choices.right
    if not answer:
        return FoundPairs([], 1, "does not say which option is right")
    if choices.right and said:
        choice = choice_in(said, choices.options)
        if choice is not None and choices.options[choice.index] != choices.right:
            return FoundPairs([], 1, CONTRADICTION)
    return FoundPairs([QAPair(question, answer, options=tuple(choices.options), **extras)])
