"""Multiple-choice questions, whose options are in columns of their own."""

import string
from collections.abc import Iterator

from ..records import Problem, Record
from .json_formats import LocatedRecord

_MISSING = {"", "nan", "NaN"}
"""What pandas may write for an empty cell."""


def ask_choices(records: Iterator[LocatedRecord]) -> Iterator[LocatedRecord]:
    """Complete each question of a benchmark's table by its hint and options, as VLMEvalKit does.

    Such a table has the columns `index`, `question`, `A`, `B` and further letters, maybe `hint`.
    Other records are left as they are.
    """
    for where, record in records:
        if not isinstance(record, Problem) and "index" in record and record.get("question"):
            record = _with_choices(record)
        yield where, record


def _with_choices(record: Record) -> Record:
    options = {
        letter: record[letter]
        for letter in string.ascii_uppercase
        if not _is_missing(record.get(letter))
    }
    if not {"A", "B"} <= options.keys():
        return record
    hint = record.get("hint")
    lines = [
        *([] if _is_missing(hint) else [f"Hint: {hint}"]),
        f"Question: {record['question']}",
        "Options:",
        *(f"{letter}. {option}" for letter, option in options.items()),
        "Please select the correct answer from the options above.",
    ]
    return {**record, "question": "\n".join(lines)}


def _is_missing(cell: str | None) -> bool:
    return cell is None or cell.strip() in _MISSING
