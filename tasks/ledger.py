"""Which rows are finished, and which failed before: what is stored, seen row by row.

Several objects can hold the same row, for two runs may have asked it at once. An answer beats any
quarantine record; of answers the one written last counts, of quarantine records the one with the
highest attempt number.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from .key_index import Array, KeyIndex, Place, pack_keys
from .object_store import ObjectStore
from .parts import kind_number
from .records import TRANSIENT, Answered, Kind, Quarantined
from .stored_rows import StoredAnswers, StoredFailures
from .storing import PARTS, QUARANTINE, milliseconds, split_rows

_KINDS = list(Kind)
_OUTCOMES_AT_ONCE = 4096
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
    """Rows in the ledger, whichever dataset they are of.

    Attributes:
        answered: rows with an answer.
        quarantined: rows without one, by the reason of their last attempt.
    """

    answered: int
    quarantined: Counter[Kind] = field(default_factory=Counter)


class Ledger:
    """What became of the rows under one configuration of the parser. For one thread.

    Keeps about 33 bytes a row, never an answer.

    Attributes:
        answers: the answered rows.
        failures: the quarantined rows; one that was answered later may be among them.
    """

    def __init__(
        self, store: ObjectStore, parse: str, *, retry_quarantined: bool, refresh: bool
    ) -> None:
        self.answers = StoredAnswers(store, f"{PARTS}/{parse}")
        self.failures = StoredFailures(store, f"{QUARANTINE}/{parse}")
        self._retry_quarantined = retry_quarantined
        self._refresh = refresh
        self._claimed = KeyIndex()

    @classmethod
    def read(
        cls,
        store: ObjectStore,
        parse: str,
        *,
        retry_quarantined: bool = False,
        refresh: bool = False,
    ) -> "Ledger":
        """Read the ledger of an output; an empty or missing output gives an empty one.

        Args:
            store: the output.
            parse: the label of the parser's configuration.
            retry_quarantined: whether rows are pending that failed for a lasting reason.
            refresh: whether all rows are pending.

        Raises:
            StoreError: the output cannot be read, or an object in it is damaged.
        """
        ledger = cls(store, parse, retry_quarantined=retry_quarantined, refresh=refresh)
        ledger.answers.sync()
        ledger.failures.sync()
        return ledger

    @property
    def batches(self) -> frozenset[str]:
        """Keys of the batches that have a part or quarantined rows; a new set at every call."""
        return frozenset(self.answers.batches | self.failures.batches)

    @property
    def halves(self) -> set[str]:
        """Keys of the batches that have quarantined rows, and whose part is not there."""
        return self.failures.halves - self.batches

    def status(self, key: str) -> RowStatus:
        """Where a row stands; one that is to be asked is claimed by this call."""
        packed = bytes.fromhex(key)
        if packed in self._claimed:
            return RowStatus.ASKED
        status = self._stored_status(packed)
        if status in (RowStatus.PENDING, RowStatus.SUSPECT):
            self._claimed.put(packed, Place(0, 0, 0))
        return status

    def attempt(self, key: str) -> int:
        """How many times the row was quarantined before."""
        place = self.failures.index.get(bytes.fromhex(key))
        return 0 if place is None else place.rank + 1

    def answer(self, key: str) -> Answered | None:
        """The stored answer of a row."""
        return self.answers.fetch(pack_keys([key]))[0]

    def failure(self, key: str) -> Quarantined | None:
        """Why a row could not be answered, as its latest attempt tells."""
        return self.failures.fetch(pack_keys([key]))[0]

    def outcomes(self, keys: Sequence[str]) -> Iterator[Answered | Quarantined | None]:
        """The answer of each row, else why there is none, else None; read piece by piece.

        Raises:
            StoreError: an object is damaged or cannot be read.
        """
        for start in range(0, len(keys), _OUTCOMES_AT_ONCE):
            packed = pack_keys(keys[start : start + _OUTCOMES_AT_ONCE])
            outcomes: list[Answered | Quarantined | None] = [*self.answers.fetch(packed)]
            rest = [place for place, outcome in enumerate(outcomes) if outcome is None]
            if rest:
                for place, failure in zip(rest, self.failures.fetch(packed[rest]), strict=True):
                    outcomes[place] = failure
            yield from outcomes

    def add(
        self,
        names: Sequence[str],
        rows: Sequence[Answered | Quarantined],
        written: float | None = None,
    ) -> None:
        """Take in what `write_batch` has just stored: the names it returned, what it was given."""
        answered, quarantined = split_rows(rows)
        time = milliseconds(written)
        for name in names:
            if name.endswith(StoredAnswers.suffix):
                self.answers.add(
                    name, ((row.key, Place(0, line, time)) for line, row in enumerate(answered))
                )
            else:
                self.failures.add(
                    name,
                    (
                        (row.key, Place(0, line, row.attempt, kind_number(row.kind)))
                        for line, row in enumerate(quarantined)
                    ),
                )

    def counts(self) -> LedgerCounts:
        """How many rows are answered, and how many are not and why."""
        _, places = self.unanswered()
        numbers = np.bincount(places["kind"], minlength=len(_KINDS)).tolist()
        quarantined = Counter({kind: n for kind, n in zip(_KINDS, numbers, strict=True) if n})
        return LedgerCounts(len(self.answers.index), quarantined)

    def unanswered(self) -> tuple[Array, Array]:
        """Keys and places of the quarantined rows that have no answer."""
        keys, places = self.failures.index.entries()
        open_rows = ~self.answers.index.find(keys).known
        return keys[open_rows], places[open_rows]

    def _stored_status(self, key: bytes) -> RowStatus:
        if key in self.answers.index:
            return RowStatus.PENDING if self._refresh else RowStatus.ANSWERED
        place = self.failures.index.get(key)
        if place is None:
            return RowStatus.PENDING
        kind = _KINDS[place.kind]
        if kind is Kind.CRASH:
            return RowStatus.SUSPECT
        if kind in TRANSIENT or self._retry_quarantined or self._refresh:
            return RowStatus.PENDING
        return RowStatus.FAILED
