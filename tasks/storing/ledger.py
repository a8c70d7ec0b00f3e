"""Which rows of a pass are finished, and which failed before: what is stored, seen row by row.

Several parts can hold the same row. An answer beats any failure; of answers the one written last
counts, of failures the one with the highest attempt number.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ..object_store.store import ObjectStore
from ..records import TRANSIENT, FinishedRow, Kind
from .key_index import Array, KeyIndex, Location, pack_keys
from .parts import ANSWERED_NUMBER, KINDS, kind_number, milliseconds, rank_of
from .stored_rows import StoredRows

_ROWS_AT_ONCE = 4096
"""Rows read together: enough that a shuffled dataset does not read every part for every row."""


class RowStatus(Enum):
    """Where a row stands in the ledger."""

    PENDING = "to be asked now"
    ASKED = "stood in the dataset before, and is asked in this run"
    ANSWERED = "answered by an earlier run"
    FAILED = "failed in an earlier run, for a reason that asking again does not change"
    SUSPECT = "to be asked now, alone: the server died when it was asked last"


@dataclass(frozen=True)
class LedgerCounts:
    """Rows in a ledger, or those of them that were asked for.

    Attributes:
        answered: rows with an answer.
        reasons: rows without one, by the reason of their last attempt.
        missing: rows asked for that are not in the ledger.
    """

    answered: int
    reasons: Counter[Kind] = field(default_factory=Counter)
    missing: int = 0

    @property
    def quarantined(self) -> int:
        """Rows without an answer."""
        return self.reasons.total()


@dataclass
class Ledger:
    """What became of the rows of a pass under one configuration of the parser. For one thread.

    Keeps about 33 bytes a row, never an answer.

    Attributes:
        rows: the finished rows.
        retry_quarantined: whether rows are pending that failed for a lasting reason.
        refresh: whether all rows are pending.
    """

    rows: StoredRows
    retry_quarantined: bool = False
    refresh: bool = False
    _claimed: KeyIndex = field(default_factory=KeyIndex)

    @classmethod
    def read(
        cls,
        store: ObjectStore,
        folder: str,
        *,
        retry_quarantined: bool = False,
        refresh: bool = False,
    ) -> "Ledger":
        """Read the ledger from its folder of parts; an empty or missing one gives an empty one."""
        rows = StoredRows(store, folder)
        rows.sync()
        return cls(rows, retry_quarantined, refresh)

    @property
    def folder(self) -> str:
        """Where its parts are."""
        return self.rows.folder

    @property
    def batches(self) -> frozenset[str]:
        """Keys of the batches that have a part; a new set at every call."""
        return frozenset(self.rows.batches)

    def status(self, key: str) -> RowStatus:
        """Where a row stands; one that is to be asked is claimed by this call."""
        packed = bytes.fromhex(key)
        if packed in self._claimed:
            return RowStatus.ASKED
        status = self._stored_status(packed)
        if status in (RowStatus.PENDING, RowStatus.SUSPECT):
            self._claimed.put(packed, Location(0, 0, 0))
        return status

    def attempt(self, key: str) -> int:
        """How many times the row was quarantined before; 0 for one that is answered."""
        place = self.rows.index.get(bytes.fromhex(key))
        return 0 if place is None or place.kind == ANSWERED_NUMBER else place.rank + 1

    def outcome(self, key: str) -> FinishedRow | None:
        """The stored answer of a row, or why it has none; None where it was never finished."""
        return self.rows.fetch(pack_keys([key]))[0]

    def outcomes(self, keys: Sequence[str]) -> Iterator[FinishedRow | None]:
        """The outcome of each row; read piece by piece."""
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            yield from self.rows.fetch(pack_keys(keys[start : start + _ROWS_AT_ONCE]))

    def add(self, name: str, rows: Sequence[FinishedRow], written: float | None = None) -> None:
        """Take in what `write_part` has just stored: the name it returned, what it was given."""
        time = milliseconds(written)
        places = (
            (row.key, Location(0, line, rank_of(row, time), kind_number(row)))
            for line, row in enumerate(rows)
        )
        self.rows.add(name, places)

    def counts(self, keys: Sequence[str] | None = None) -> LedgerCounts:
        """How many rows are answered, and how many are not and why.

        Of some rows, one as often as it stands there; by default of all that are stored.
        """
        if keys is None:
            _, places = self.rows.index.entries()
            return _counts(np.bincount(places["kind"], minlength=len(KINDS)), 0)
        numbers, missing = np.zeros(len(KINDS), np.int64), 0
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            found = self.rows.index.find(pack_keys(keys[start : start + _ROWS_AT_ONCE]))
            missing += int((~found.known).sum())
            kinds = found.places["kind"][found.known]
            numbers += np.bincount(kinds, minlength=len(KINDS))
        return _counts(numbers, missing)

    def _stored_status(self, key: bytes) -> RowStatus:
        place = self.rows.index.get(key)
        kind = KINDS[place.kind] if place else None
        if place is None or (self.refresh and kind is not Kind.CRASH):
            return RowStatus.PENDING
        if kind is None:
            return RowStatus.ANSWERED
        if kind is Kind.CRASH:
            return RowStatus.SUSPECT
        asked_again = kind in TRANSIENT or self.retry_quarantined
        return RowStatus.PENDING if asked_again else RowStatus.FAILED


def _counts(numbers: Array, missing: int) -> LedgerCounts:
    reasons = Counter({kind: int(n) for kind, n in zip(KINDS, numbers, strict=True) if kind and n})
    return LedgerCounts(int(numbers[ANSWERED_NUMBER]), reasons, missing)
