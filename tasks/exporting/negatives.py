"""Pairs -> the rows that ask their questions about another image -> the unanswerable pairs."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ..checking.check import AskedCheck
from ..checking.consistency import answer_of
from ..checking.negatives import is_candidate, rank, tried_share, unanswerable_pair
from ..checking.texts import question_form
from ..records import FinishedRow, QAPair, Quarantined, Row
from .checked_rows import Joined, drawn_other, rows_with_others
from .pairs_parquet import encodable

_MOST_PER_ROW = 16
"""Pairs that one row is given: a rare other image would be drawn for all questions."""


@dataclass(frozen=True, slots=True)
class Try:
    """A question that is asked about the images of another row.

    Attributes:
        row: position of its own row.
        number: of its pair there.
        pair: its pair.
        other: position of the other row.
        rank: see `checking.negatives.rank`.
    """

    row: int
    number: int
    pair: QAPair
    other: int
    rank: float


@dataclass
class Tried:
    """What became of the questions that were asked about another image.

    Attributes:
        questions: how many were asked.
        failed: of how many a request failed.
        unanswerable: how many turned out unanswerable.
        reasons: the failed requests by kind.
    """

    questions: int = 0
    failed: int = 0
    unanswerable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def negative_rows(
    check: AskedCheck, joined: Iterable[Joined], share: float, seed: int
) -> Iterator[Row]:
    """A row for each request.

    Args:
        check: see `checking.negatives.check`.
        joined: the rows of the dataset that have pairs, with these.
        share: of unanswerable pairs that is wanted.
        seed: draws questions and other images.
    """
    for row, other, each in _tries(joined, share, seed):
        if row is None or other is None:
            continue
        pair = each.pair
        asked = replace(
            row,
            record=other.record,
            where=f"{row.where}, pair {each.number + 1}, with the image of {other.where}",
            question=pair.question,
            pair=pair,
        )
        for sample in range(check.times):
            yield replace(asked, sample=sample)


def unanswerable(
    check: AskedCheck,
    joined: Iterable[Joined],
    outcomes: Iterator[FinishedRow | None],
    share: float,
    seed: int,
    tried: Tried,
) -> Iterator[tuple[Try, QAPair]]:
    """The questions that turned out unanswerable, each with its new pair; `tried` counts them.

    Args:
        check: see `checking.negatives.check`.
        joined: all pairs.
        outcomes: of the rows of `negative_rows`, in their order.
        share: as there.
        seed: as there.
        tried: is increased.
    """
    for _, _, each in _tries(joined, share, seed):
        found = [outcome for outcome in islice(outcomes, check.times) if outcome is not None]
        tried.questions += 1
        is_unanswerable = None
        if len(found) == check.times:
            (is_unanswerable,) = check.verdict(each.pair, found)
        tried.failed += is_unanswerable is None
        tried.reasons.update(each.kind for each in found if isinstance(each, Quarantined))
        if is_unanswerable:
            tried.unanswerable += 1
            yield each, unanswerable_pair(each.pair, answer_of(found[0]), seed)


def chosen_pairs(
    found: Iterable[tuple[Try, QAPair]], count: int, path: Path
) -> Iterator[tuple[int, QAPair]]:
    """As many pairs as there should be, or fewer; each with its row, in the order of the rows.

    A row is given no question twice, and few pairs: those with the lowest ranks are taken.

    Args:
        found: the pairs there are.
        count: how many there should be.
        path: a new file, in which they are sorted.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE found (row INT, form TEXT, rank REAL, source INT, number INT, "
            "question TEXT, answer TEXT, language TEXT, type TEXT, PRIMARY KEY (row, form))"
        )
        database.executemany(
            "INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(each.other, question_form(pair.question), each.rank, each.row, each.number),
                    *(pair.question, encodable(pair.answer), pair.language, pair.type),
                )
                for each, pair in found
            ),
        )
        lines = database.execute(
            "SELECT row, question, answer, type, language FROM ("
            "  SELECT * FROM ("
            "    SELECT *, row_number() OVER (PARTITION BY row ORDER BY rank, source, number) place"
            "    FROM found"
            "  ) WHERE place <= ? ORDER BY rank, source, number LIMIT ?"
            ") ORDER BY row, place",
            (_MOST_PER_ROW, count),
        )
        for row, question, answer, kind, language in lines:
            yield row, QAPair(question, answer, kind, language=language)


def _tries(
    joined: Iterable[Joined], share: float, seed: int
) -> Iterator[tuple[Row | None, Row | None, Try]]:
    """The questions that are asked about another image: the own row, the other one, the question.

    Not one that is asked about the other image, too.
    """
    most = tried_share(share)
    for (row, found), others in rows_with_others(joined):
        for number, pair in enumerate(found.pairs if others else ()):
            drawn = rank(found.images, pair.question, seed)
            if drawn >= most or not is_candidate(pair):
                continue
            other, shown = drawn_other(others, seed, found, number)
            form = question_form(pair.question)
            if form not in (question_form(there.question) for there in shown.pairs):
                yield row, other, Try(found.row, number, pair, shown.row, drawn)
