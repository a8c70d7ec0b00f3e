"""The ledger: which rows of a pass are answered, which are quarantined, and which are pending.

Several parts can hold the same row. An answer beats any failure; of several answers the one that
was written last counts, of several failures the one with the highest attempt number.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ..object_store.store import ObjectStore
from ..records import TRANSIENT, FinishedRow, Kind
from .key_index import Array, KeyIndex, Location, pack_keys, packed_pieces
from .parts import ANSWERED_NUMBER, KINDS, kind_number, milliseconds, rank_of
from .stored_rows import StoredRows

_ROWS_PER_FETCH = 4096
_MOST_ROWS_PER_FETCH = 32_768
_CHARACTERS_PER_FETCH = 20_000_000
"""Rows read together: the more of them, as far as their replies allow, the fewer times each part is
read for rows that are scattered, as those of a shuffled dataset."""

_SCATTERED = 64
"""Rows are scattered if each piece of a part is read for fewer than this."""


class RowStatus(Enum):
    """Whether a row is to be sent to the model, and if not, why."""

    PENDING = "to be sent in this run"
    DUPLICATE = "has the same key as an earlier row that is sent in this run"
    ANSWERED = "answered by an earlier run"
    FAILED = "quarantined by an earlier run for a permanent reason"
    SUSPECT = "to be sent in isolation: the server crashed while it worked on the row"


@dataclass(frozen=True)
class LedgerCounts:
    """Counts of the rows of a ledger, or of the rows that were looked up.

    Attributes:
        answered: rows with an answer.
        reasons: rows without one, by the reason of their last attempt.
        missing: rows looked up that are not in the ledger.
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
    """The state of the rows of a pass under one parser configuration. Not thread-safe.

    Needs about 33 bytes of memory per row: answers stay in the store.

    Attributes:
        rows: the finished rows.
        retry_quarantined: whether rows that failed for a permanent reason are pending.
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
        alone: bool = False,
    ) -> "Ledger":
        """Read the ledger from a folder of parts; it is empty if the folder is empty or missing.

        `alone` is as for `StoredRows.sync`.
        """
        rows = StoredRows(store, folder)
        rows.sync(alone=alone)
        return cls(rows, retry_quarantined, refresh)

    @property
    def folder(self) -> str:
        """Folder of its parts."""
        return self.rows.folder

    @property
    def batches(self) -> frozenset[str]:
        """Keys of the batches that have a part; a new set on every access."""
        return frozenset(self.rows.batches)

    def statuses(self, keys: Sequence[str]) -> list[RowStatus]:
        """The status of each row; once it is pending, further rows with its key are duplicates."""
        packed = pack_keys(keys)
        statuses = self._stored_statuses(packed)
        sent = self._claimed.find(packed).known.tolist()
        claimed: dict[bytes, Location] = {}
        for number, key in enumerate(map(bytes.fromhex, keys)):
            if sent[number] or key in claimed:
                statuses[number] = RowStatus.DUPLICATE
            elif statuses[number] in (RowStatus.PENDING, RowStatus.SUSPECT):
                claimed[key] = _NOWHERE
        self._claimed.update(claimed)
        return statuses

    def attempts(self, keys: Sequence[str]) -> list[int]:
        """How many times each row was quarantined so far; 0 for an answered one."""
        found = self.rows.index.find(pack_keys(keys))
        failed = found.known & (found.locations["kind"] != ANSWERED_NUMBER)
        return list(np.where(failed, found.locations["rank"] + 1, 0).tolist())

    def outcome(self, key: str) -> FinishedRow | None:
        """The stored answer or failure of a row; None if it is not finished."""
        return self.rows.fetch(pack_keys([key]))[0]

    def outcomes(self, keys: Sequence[str]) -> Iterator[FinishedRow | None]:
        """The outcome of each row, read lazily."""
        start, count = 0, _ROWS_PER_FETCH
        while start < len(keys):
            before = self.rows.pieces_read
            rows = self.rows.fetch(pack_keys(keys[start : start + count]))
            start += count
            is_scattered = count < _SCATTERED * (self.rows.pieces_read - before)
            characters = sum(len(row.text or "") for row in rows if row is not None)
            yield from rows
            del rows  # before the next are read
            if characters > _CHARACTERS_PER_FETCH:
                count = max(count // 2, _ROWS_PER_FETCH)
            elif is_scattered and 2 * characters <= _CHARACTERS_PER_FETCH:
                count = min(2 * count, _MOST_ROWS_PER_FETCH)

    def add(self, name: str, rows: Sequence[FinishedRow], written: float | None = None) -> None:
        """Add the rows of a part that was just stored.

        Args:
            name: name of the part.
            rows: its rows, as given to `write_part`.
            written: as given to `write_part`.
        """
        time = milliseconds(written)
        locations = {
            bytes.fromhex(row.key): (number, rank_of(row, time), kind_number(row))
            for number, row in enumerate(rows)
        }
        self.rows.add(name, locations)

    def counts(self, keys: Sequence[str] | None = None) -> LedgerCounts:
        """Count answered and quarantined rows.

        Args:
            keys: the rows to count, duplicates as often as they occur; by default all rows.
        """
        if keys is None:
            _, locations = self.rows.index.entries()
            return _counts(np.bincount(locations["kind"], minlength=len(KINDS)), 0)
        numbers, missing = np.zeros(len(KINDS), np.int64), 0
        for found in map(self.rows.index.find, packed_pieces(keys)):
            missing += int((~found.known).sum())
            kinds = found.locations["kind"][found.known]
            numbers += np.bincount(kinds, minlength=len(KINDS))
        return _counts(numbers, missing)

    def counts_without(self, keys: Array) -> LedgerCounts:
        """Count all rows but these, given as an array of `KEY` without duplicates."""
        kinds = self.rows.index.entries()[1]["kind"]
        found = self.rows.index.find(keys)
        numbers = np.bincount(kinds, minlength=len(KINDS))
        known = found.locations["kind"][found.known]
        return _counts(numbers - np.bincount(known, minlength=len(KINDS)), 0)

    def _stored_statuses(self, keys: Array) -> list[RowStatus]:
        """The status of each row by its stored copy."""
        by_kind = [self._status_of(kind) for kind in KINDS]
        found = self.rows.index.find(keys)
        return [
            by_kind[kind] if known else RowStatus.PENDING
            for known, kind in zip(
                found.known.tolist(), found.locations["kind"].tolist(), strict=True
            )
        ]

    def _status_of(self, kind: Kind | None) -> RowStatus:
        """The status of a row that was quarantined for a reason; None for an answered one."""
        if kind is Kind.CRASH:
            return RowStatus.SUSPECT
        if self.refresh:
            return RowStatus.PENDING
        if kind is None:
            return RowStatus.ANSWERED
        retried = kind in TRANSIENT or self.retry_quarantined
        return RowStatus.PENDING if retried else RowStatus.FAILED


_NOWHERE = Location(0, 0, 0)


def _counts(numbers: Array, missing: int) -> LedgerCounts:
    reasons = Counter({kind: int(n) for kind, n in zip(KINDS, numbers, strict=True) if kind and n})
    return LedgerCounts(int(numbers[ANSWERED_NUMBER]), reasons, missing)
