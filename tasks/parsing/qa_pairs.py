# ruff: noqa: RUF002 (labels in Chinese have fullwidth punctuation)
"""The built-in parsers: completion text -> question-answer pairs; pure functions, no I/O.

Everything here handles any text in linear time: models get stuck in loops, and a text in an
untrusted image can dictate what the model writes.
"""

from ..records import QAPair
from .found_pairs import FoundPairs
from .json_text import json_pairs
from .labelled_text import labelled_pairs
from .table_text import table_pairs
from .tagged_text import tagged_pairs
from .wrappers import unwrap

PARSER_VERSION = 3
"""Bumped when a parser here changes its results, so that stored completions are parsed again."""


def parse_qa_pairs(text: str) -> list[QAPair]:
    """The pairs in a reply, in order; [] if there are none. Never raises.

    Recognises labelled lines (`**Question:**`, `### Answer`, `Q1.`, `A:`, `1. Question:`, `问题：`,
    `Réponse :` ...) or, if there are none, the tags `<question>` and `<answer>`, or JSON objects
    with these labels as keys, anywhere in the text. Labels count only at the start of a line, or at
    the end of a question in the same line. An answer extends to the next question label. Reasoning
    (`<think>` and the like), text before the first question, and questions without an answer are
    ignored.
    """
    return find_qa_pairs(text).pairs


def find_qa_pairs(text: str) -> FoundPairs:
    """The pairs in a reply, and how many more it seems to have."""
    text = unwrap(text).replace("\r\n", "\n")
    lost = 0
    for read in (labelled_pairs, tagged_pairs, table_pairs, json_pairs):
        found = read(text)
        if found.pairs:
            return found
        lost = max(lost, found.lost)
    return FoundPairs([], lost)


def parse_answer(text: str, question: str = "") -> list[QAPair]:
    """The whole reply, without reasoning, as the answer to the row's own question.

    Args:
        text: the reply.
        question: the text of the user's last message; a row that asks nothing has no pair.
    """
    answer = unwrap(text).replace("\r\n", "\n")
    return [QAPair(question, answer)] if question and answer else []
