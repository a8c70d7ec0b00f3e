"""Question-answer pairs from Markdown tables: `| Question | Answer |`."""

import re

from ..records import QAPair
from .found_pairs import FoundPairs
from .labels import ANSWER, QUESTION
from .wrappers import trim

_RULE = re.compile(r"[|:\s-]++")
_BAR = re.compile(r"(?<!\\)\|")
_QUESTION = re.compile(rf"[*_]*+(?:{QUESTION})s?[*_]*+", re.IGNORECASE)
_ANSWER = re.compile(rf"[*_]*+(?:{ANSWER})s?[*_]*+", re.IGNORECASE)


def table_pairs(text: str) -> FoundPairs:
    """The pairs in the rows of tables that have a column for questions and one for answers."""
    pairs, lost = [], 0
    columns: tuple[int, int] | None = None
    before = ""
    for line in text.split("\n"):
        if "|" not in line:
            columns = None
        elif "-" in line and _RULE.fullmatch(line):
            columns = _columns(_cells(before))
        elif columns is not None:
            cells = _cells(line)
            question, answer = (cells[n] if n < len(cells) else "" for n in columns)
            if question and answer:
                pairs.append(QAPair(question, answer))
            elif question or answer:
                lost += 1
        before = line
    return FoundPairs(pairs, lost)


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [trim(cell.replace("\\|", "|")) for cell in _BAR.split(inner)]


def _columns(head: list[str]) -> tuple[int, int] | None:
    """The numbers of the columns for questions and answers; None if there is not one of each."""
    questions = [number for number, cell in enumerate(head) if _QUESTION.fullmatch(cell)]
    answers = [number for number, cell in enumerate(head) if _ANSWER.fullmatch(cell)]
    return (questions[0], answers[0]) if len(questions) == len(answers) == 1 else None
