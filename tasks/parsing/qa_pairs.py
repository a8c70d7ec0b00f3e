# ruff: noqa: RUF002 (labels in Chinese have fullwidth punctuation)
"""The built-in parsers: completion text -> question-answer pairs; pure functions, no I/O.

Everything here handles any text in linear time: models get stuck in loops, and a text in an
untrusted image can dictate what the model writes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..records import Asked, QAPair, ReplyForm
from .answers import find_answer
from .bare_choices import bare_choices
from .found_pairs import FoundPairs, without_placeholders
from .json_text import json_pairs, json_turns
from .labelled_text import labelled_pairs, turn_pairs
from .multiple_choice import with_choice
from .questions import find_questions
from .table_text import table_pairs
from .tagged_text import tagged_pairs
from .wrappers import unwrap

PARSER_VERSION = 3
"""Bumped when a parser here changes its results, so that stored completions are parsed again."""

_Reader = Callable[[str], FoundPairs]
_PAIRS: Sequence[_Reader] = (labelled_pairs, tagged_pairs, table_pairs, json_pairs)


def parse_qa_pairs(text: str) -> list[QAPair]:
    """The pairs in a reply, in order; [] if there are none. Never raises.

    Recognises labelled lines (`**Question:**`, `### Answer`, `Q1.`, `A:`, `1. Question:`, `问题：`,
    `Réponse :` ...) or, if there are none, the tags `<question>` and `<answer>`, or JSON objects
    with these labels as keys, anywhere in the text. Labels count only at the start of a line, or at
    the end of a question in the same line. An answer extends to the next label. Reasoning
    (`<think>` and the like), text before the first question, and questions without an answer are
    ignored.
    """
    return find_pairs(text).pairs


def find_pairs(text: str, asked: Asked = Asked()) -> FoundPairs:  # noqa: B008 - frozen
    """The pairs in a reply of the form that was asked for, and how many more it seems to have.

    A pair about which the reply does not say more is of the type and in the language asked for.
    """
    text = unwrap(text).replace("\r\n", "\n")
    found = without_placeholders(_FORMS[asked.form](text, asked))
    if not (asked.type or asked.language):
        return found
    pairs = [
        replace(pair, type=pair.type or asked.type, language=pair.language or asked.language)
        for pair in found.pairs
    ]
    return replace(found, pairs=pairs)


def parse_answer(text: str, question: str = "") -> list[QAPair]:
    """The whole reply, without reasoning, as the answer to the row's own question.

    Args:
        text: the reply.
        question: the text of the user's last message; a row that asks nothing has no pair.
    """
    answer = unwrap(text).replace("\r\n", "\n")
    return [QAPair(question, answer)] if question and answer else []


def _first(text: str, readers: Sequence[_Reader]) -> FoundPairs:
    """What the first reader finds that finds any pair."""
    best = FoundPairs([])
    for read in readers:
        found = without_placeholders(read(text))
        if found.pairs:
            return found
        best = max(best, found, key=lambda found: (bool(found.reason), found.lost))
    return best


def _pairs(text: str, _asked: Asked) -> FoundPairs:
    return _with_choices(_first(text, (*_PAIRS, bare_choices)), required=False)


def _dialogue(text: str, _asked: Asked) -> FoundPairs:
    """Turns follow from one another: those after one that cannot be read are lost with it."""
    found = _first(text, (*_PAIRS, turn_pairs, json_turns))
    turns = found.pairs[: found.before_gap]
    gap = 0 if found.before_gap is None else 1
    return replace(
        found,
        pairs=[replace(pair, turn=number) for number, pair in enumerate(turns, 1)],
        lost=max(found.lost, gap) + len(found.pairs) - len(turns),
    )


def _multiple_choice(text: str, _asked: Asked) -> FoundPairs:
    return _with_choices(_first(text, (*_PAIRS, bare_choices)), required=True)


def _with_choices(found: FoundPairs, *, required: bool) -> FoundPairs:
    results = [with_choice(pair, required=required) for pair in found.pairs]
    reasons = [result for result in results if isinstance(result, str)]
    return FoundPairs(
        pairs=[result for result in results if isinstance(result, QAPair)],
        lost=found.lost + len(reasons),
        reason=next(iter(reasons), found.reason),
    )


_FORMS: Mapping[ReplyForm, Callable[[str, Asked], FoundPairs]] = {
    ReplyForm.PAIRS: _pairs,
    ReplyForm.DIALOGUE: _dialogue,
    ReplyForm.MULTIPLE_CHOICE: _multiple_choice,
    ReplyForm.ANSWER: find_answer,
    ReplyForm.QUESTIONS: lambda text, _asked: find_questions(text),
}
