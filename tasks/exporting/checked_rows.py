"""Pairs -> the rows of a check; their outcomes -> what the check says of the pairs."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

from ..checking import AskedCheck, CheckedPair, Values
from ..object_store.store import ObjectStore
from ..records import FinishedRow, QAPair, Row
from ..storing.key_index import Array
from ..storing.layout import ALL_PAIRS
from .row_pairs import RowPairs, read_pairs

WINDOW = 32
"""Earlier rows with other images, from which that of `AskedCheck.other_image` is drawn. Only the
first rows take a later one: so it stays the same when the dataset grows."""

Joined = tuple[Row | None, RowPairs]


def checked_pairs(store: ObjectStore) -> Iterator[CheckedPair]:
    """The pairs of an output as checks see them, in order."""
    for found in read_pairs(store, ALL_PAIRS):
        for number, pair in enumerate(found.pairs):
            yield CheckedPair(found.row, number, pair, found.images)


def check_rows(
    check: AskedCheck,
    joined: Iterable[tuple[Row, RowPairs]],
    seed: int,
    dropped: Array,
) -> Iterator[Row]:
    """A row for each request of a check.

    Args:
        check: the check.
        joined: the rows of the dataset that have pairs, with these.
        seed: draws other images.
        dropped: for each pair whether it is dropped already, and not asked about.
    """
    for row, number, pair, other in _asked(check, joined, seed, dropped):
        if pair is None or row is None:
            continue
        where, record = f"{row.where}, pair {number + 1}", row.record
        if other is not None:
            where, record = f"{where}, with the image of {other.where}", other.record
        for sample in range(check.times):
            yield replace(
                row, record=record, where=where, question=pair.question, pair=pair, sample=sample
            )


def asked_values(
    check: AskedCheck,
    pairs: Iterable[RowPairs],
    outcomes: Iterator[FinishedRow | None],
    seed: int,
    dropped: Array,
) -> Iterator[Values]:
    """What a check says of each pair, in order; null if it was not asked, or has no result.

    Args:
        check: the check.
        pairs: all pairs.
        outcomes: of the rows of the check, in their order.
        seed: the one with which these were made.
        dropped: as it was for these.
    """
    nothing = (None,) * len(check.columns)
    for _, _, pair, _ in _asked(check, ((None, found) for found in pairs), seed, dropped):
        if pair is None:
            yield nothing
            continue
        found = list(islice(outcomes, check.times))
        finished = [outcome for outcome in found if outcome is not None]
        said = check.verdict(pair, finished) if len(finished) == check.times else nothing
        yield nothing if said[0] is None else said  # a condition on the answers must not be met


def _asked(
    check: AskedCheck, joined: Iterable[Joined], seed: int, dropped: Array
) -> Iterator[tuple[Row | None, int, QAPair | None, Row | None]]:
    """For each pair: its row and number; itself, if it is asked about; the row with other images.

    Not asked about is a pair that is dropped, a turn of a dialogue, which may not stand on its own,
    and a pair that is to be shown with another image, but there is none. Which image that is does
    not depend on what is dropped.
    """
    places = count()
    with_others: Iterable[tuple[Joined, list[Joined]]] = (
        rows_with_others(joined) if check.other_image else ((each, []) for each in joined)
    )
    for (row, found), others in with_others:
        for number, pair in enumerate(found.pairs):
            is_dropped = dropped[next(places)]
            if is_dropped or pair.turn or (check.other_image and not others):
                yield row, number, None, None
            elif check.other_image:
                other, _ = drawn_other(others, seed, found, number)
                yield row, number, pair, other
            else:
                yield row, number, pair, None


def drawn_other(others: Sequence[Joined], seed: int, found: RowPairs, number: int) -> Joined:
    """The row whose images a pair is shown with: the lowest of numbers drawn for each candidate.

    That of a candidate does not depend on which others there are, nor on the places of the rows.
    """

    def drawn(other: Joined) -> bytes:
        text = f"{seed}:{found.images}:{number}:{other[1].images}"
        return hashlib.sha256(text.encode()).digest()

    return min(others, key=drawn)


def rows_with_others(joined: Iterable[Joined]) -> Iterator[tuple[Joined, list[Joined]]]:
    """Each row with those near it that have other images, if it has images itself."""
    earlier: OrderedDict[str, Joined] = OrderedDict()
    waiting: list[Joined] = []
    """The first rows, as long as all have the same images."""
    for each in joined:
        digest = each[1].images
        if digest:
            earlier.setdefault(digest, each)
            earlier.move_to_end(digest)
            if len(earlier) > WINDOW + 1:
                earlier.popitem(last=False)
        if len(earlier) < 2 and len(waiting) < WINDOW:
            waiting.append(each)
            continue
        for held in (*waiting, each):
            own = held[1].images
            yield held, [other for digest, other in earlier.items() if own and digest != own]
        waiting.clear()
    for held in waiting:
        yield held, []
