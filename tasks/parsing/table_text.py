"""Question-answer pairs from Markdown tables: `| Question | Answer |`."""

import re
from collections.abc import Mapping, Sequence

from ..records import QAPair
from .extras import FIELDS, named
from .found_pairs import FoundPairs
from .labels import ANSWER, OPTIONS_WORDS, QUESTION, alternatives
from .wrappers import trim

_RULE = re.compile(r"[|:\s-]++")
_BAR = re.compile(r"(?<!\\)\|")
_BREAK = re.compile(r"[^\S\n]*+<br[^\S\n]*+/?>[^\S\n]*+", re.IGNORECASE)
_HEADS = {
    field: re.compile(rf"[*_]*+(?:{words})s?[*_]*+", re.IGNORECASE)
    for field, words in {
        "question": QUESTION,
        "answer": ANSWER,
        "options": alternatives(OPTIONS_WORDS),
        **{field: alternatives(words) for field, words in FIELDS.items()},
    }.items()
}


def table_pairs(text: str) -> FoundPairs:
    """The pairs in the rows of tables that have a column for questions and one for answers."""
    pairs, lost = [], 0
    before_gap: int | None = None
    columns: Mapping[str, int] | None = None
    before = ""
    for line in text.split("\n"):
        if "|" not in line:
            columns = None
        elif "-" in line and _RULE.fullmatch(line):
            columns = _columns(_cells(before))
        elif columns is not None:
            cells = _cells(line)
            row = {field: cells[n] if n < len(cells) else "" for field, n in columns.items()}
            question, answer = row["question"], row["answer"]
            if question and answer:
                question = "\n".join(filter(None, (question, row.get("options"))))
                extras = named((field, row[field]) for field in FIELDS if field in row)
                pairs.append(QAPair(question, answer, **extras))
            elif question or answer:
                lost += 1
                before_gap = len(pairs) if before_gap is None else before_gap
        before = line
    return FoundPairs(pairs, lost, before_gap=before_gap)


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [trim(_BREAK.sub("\n", cell.replace("\\|", "|"))) for cell in _BAR.split(inner)]


def _columns(head: Sequence[str]) -> Mapping[str, int] | None:
    """Numbers of the columns; None if there is not one for questions and one for answers."""
    columns: dict[str, int] = {}
    for number, cell in enumerate(head):
        for field, word in _HEADS.items():
            if word.fullmatch(cell):
                if field in columns:
                    return None
                columns[field] = number
                break
    return columns if {"question", "answer"} <= columns.keys() else None
