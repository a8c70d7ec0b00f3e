"""Decides which of the judged pairs are kept, and counts what each part of a filter does.

A pair is filtered by the first that applies: a part of the condition that it does not meet, in the
order in which they are written, but last those on checks that were not made of pairs that the
others drop; an earlier turn of its dialogue that is filtered; not being among the best; a limit.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ..checking.balance import Array, Cap, groups_of, left_out, order_of
from ..checking.best import Best
from ..checking.conditions import Condition
from ..errors import ConditionError
from ..object_store.store import ObjectStore
from ..storing.layout import JUDGED
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .distinct_pairs import normal_form
from .pairs_parquet import PAIRS_SCHEMA, dataset_fields, later_checks

EARLIER_TURN = "an earlier turn of the dialogue is filtered"

_REMEDY = "run the same command again to rewrite it"

_COLUMN_OF_CAP = {"type": "type", "answer": "answer", "image": "image_digest"}


class PartCounts(BaseModel):
    """What one part of a condition, or a share to keep, says of all pairs.

    Attributes:
        text: the part.
        passed: pairs that meet it.
        failed: pairs that do not.
        unknown: pairs of which it says nothing, since a column has no result: they are not kept.
        unasked: the same, since the run has dropped them before it made the check.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    passed: int
    failed: int
    unknown: int
    unasked: int

    @classmethod
    def of(cls, text: str, counts: Array, skipped: int) -> Self:
        """From pairs that pass, fail, and of which nothing is known; so many had no check."""
        passed, failed, unknown = counts.tolist()
        unasked = min(unknown, skipped)
        return cls(
            text=text, passed=passed, failed=failed, unknown=unknown - unasked, unasked=unasked
        )


class PairSplit(BaseModel):
    """What a split keeps.

    Attributes:
        pairs: pairs that are kept.
        filtered_pairs: pairs that are not.
        rows: rows that keep a pair.
        filtered_rows: rows that had pairs, and keep none.
        reasons: how many pairs are filtered for each reason.
        parts: each part of the condition, and each share to keep.
    """

    model_config = ConfigDict(frozen=True)

    pairs: int
    filtered_pairs: int
    rows: int
    filtered_rows: int
    reasons: Mapping[str, int]
    parts: tuple[PartCounts, ...] = ()


@dataclass(frozen=True)
class SplitPlan:
    """Which pairs are kept.

    Attributes:
        split: the counts.
        codes: for each pair the number of its reason, from 1; 0 if it is kept.
        reasons: the reasons.
    """

    split: PairSplit
    codes: Array
    reasons: Sequence[str]

    def reasons_of(self, start: int, count: int) -> pa.Array:
        """The reasons of some pairs in a row; null for those that are kept."""
        codes = self.codes[start : start + count].astype(np.int32)
        return pa.array(self.reasons, pa.string()).take(pa.array(codes - 1, mask=codes == 0))


def judged_schema(store: ObjectStore, name: str = JUDGED) -> pa.Schema:
    """The columns of a file with judged pairs, and its metadata.

    Raises:
        ObjectMissingError: there are no judged pairs.
        ValueError: it is no such file.
    """
    with store.open(name) as source:
        schema = pq.read_schema(pa.PythonFile(source, mode="r"))
    dataset_fields(schema, PAIRS_SCHEMA)
    if len(set(schema.names)) < len(schema):
        raise ValueError("columns of the same name")
    return schema


def plan_split(
    store: ObjectStore,
    keep: str = "",
    caps: Sequence[Cap] = (),
    seed: int = 0,
    name: str = JUDGED,
    *,
    best: Sequence[Best] = (),
) -> SplitPlan:
    """Decide which pairs of a file are kept; see `split_pairs` for the other arguments and errors.

    Held in memory are about 20 bytes for each pair, and 8 more for each share and limit.
    """
    with reported_corruption(store, name, _REMEDY):
        schema = judged_schema(store, name)
        for each in best:
            each.check(list(schema)[len(PAIRS_SCHEMA) :])
        best, caps = tuple(dict.fromkeys(best)), tuple(dict.fromkeys(caps))
        tally = _Tally(Condition(keep, schema), best, caps, seed, later_checks(schema))
        tally.add(pa.RecordBatch.from_pylist([], schema))  # a file may have no pairs
        for batch in bounded_batches(store, name, PAIRS_SCHEMA, tally.needed):
            if any(batch.column(column).null_count for column in ("row", "key", "pair")):
                raise ValueError("missing values")
            tally.add(batch)
    return tally.plan()


class _Tally:
    """Reads pairs batch by batch, and holds only numbers of each."""

    def __init__(
        self,
        condition: Condition,
        best: Sequence[Best],
        caps: Sequence[Cap],
        seed: int,
        later: Mapping[str, int],
    ) -> None:
        self._condition = condition
        self._later = later
        self._best = best
        self._caps = caps
        self._seed = seed
        own = ["row", "key", "pair", "turn", *(_COLUMN_OF_CAP[cap.column] for cap in caps)]
        numbers = [each.column for each in best]
        self.needed = list(dict.fromkeys([*own, *condition.columns, *numbers]))
        self._reasons: dict[str, int] = {}
        self._counts = [np.zeros(3, np.int64) for _ in condition.parts]
        self._arrays = defaultdict[str | Best | Cap, list[Array]](list)

    def add(self, batch: pa.RecordBatch) -> None:
        """Read the next pairs."""
        arrays = self._arrays
        arrays["row"].append(batch.column("row").to_numpy())
        arrays["turn"].append(pc.fill_null(batch.column("turn"), 0).to_numpy())
        arrays["code"].append(self._codes(batch))
        for best in self._best:
            numbers = pc.cast(batch.column(best.column), pa.float64(), safe=False)
            arrays[best].append(numbers.to_numpy(zero_copy_only=False))
        if self._caps:
            keys = (batch.column(name).to_pylist() for name in ("key", "pair"))
            arrays["order"].append(order_of(self._seed, zip(*keys, strict=True)))
        for cap in self._caps:
            values = batch.column(_COLUMN_OF_CAP[cap.column]).to_pylist()
            if cap.column != "image":
                values = [normal_form(value) if value else None for value in values]
            arrays[cap].append(groups_of(values))

    def plan(self) -> SplitPlan:
        """Decide, now that all pairs are known."""
        found = {name: np.concatenate(parts) for name, parts in self._arrays.items()}
        rows, turns, codes = (found[name] for name in ("row", "turn", "code"))
        self._filter_later_turns(rows, turns, codes)
        parts = [
            PartCounts.of(part.text, counts, self._skipped(part.columns))
            for part, counts in zip(self._condition.parts, self._counts, strict=True)
        ]
        left = codes == 0
        parts += [self._keep_best(best, found[best], left, codes) for best in self._best]
        self._filter_later_turns(rows, turns, codes)
        if self._caps:
            self._apply_caps(codes, found["order"], [found[cap] for cap in self._caps])
            self._filter_later_turns(rows, turns, codes)
        reasons = list(self._reasons)
        kept, *counts = np.bincount(codes, minlength=len(reasons) + 1).tolist()
        all_rows, kept_rows = len(np.unique(rows)), len(np.unique(rows[codes == 0]))
        split = PairSplit(
            pairs=kept,
            filtered_pairs=len(codes) - kept,
            rows=kept_rows,
            filtered_rows=all_rows - kept_rows,
            reasons={reason: n for reason, n in zip(reasons, counts, strict=True) if n},
            parts=tuple(parts),
        )
        return SplitPlan(split, codes, reasons)

    def _code(self, reason: str) -> int:
        return self._reasons.setdefault(reason, len(self._reasons) + 1)

    def _codes(self, batch: pa.RecordBatch) -> Array:
        """For each pair, the number of the first reason; 0 for none."""
        codes = np.zeros(len(batch), np.int16)
        results = self._condition.evaluate(batch)
        parts = zip(self._condition.parts, self._counts, results, strict=True)
        for part, counts, result in sorted(parts, key=lambda each: self._skipped(each[0].columns)):
            unknown = _flags(result.is_null())
            passed = _flags(pc.fill_null(result, False))
            counts += _counted(passed, unknown)
            for name in sorted(part.columns, key=lambda name: self._later.get(name, 0)):
                is_null = _flags(batch.column(name).is_null())
                codes[(codes == 0) & unknown & is_null] = self._code(f"null in {name}")
            codes[(codes == 0) & ~passed] = self._code(part.text)
        return codes

    def _skipped(self, columns: Sequence[str]) -> int:
        """Of how many pairs the run did not make a check that gives one of these columns."""
        return max((self._later.get(name, 0) for name in columns), default=0)

    def _filter_later_turns(self, rows: Array, turns: Array, codes: Array) -> None:
        """Filter the turns of dialogues that follow a filtered one: they build on it."""
        is_turn = turns > 0
        if not is_turn.any():
            return
        at = np.arange(len(codes))
        last_filtered = np.maximum.accumulate(np.where(is_turn & (codes > 0), at, -1))
        starts = np.maximum.accumulate(
            np.where(np.concatenate([[True], rows[1:] != rows[:-1]]), at, 0)
        )
        codes[is_turn & (codes == 0) & (last_filtered >= starts)] = self._code(EARLIER_TURN)

    def _keep_best(self, best: Best, values: Array, left: Array, codes: Array) -> PartCounts:
        """Filter the pairs that are not among the best of those that the condition has left."""
        unknown = np.isnan(values)
        passed = values >= best.bound(values[left & ~unknown])
        codes[(codes == 0) & unknown] = self._code(f"null in {best.column}")
        codes[(codes == 0) & ~passed] = self._code(f"not among the {best.text}")
        unasked = self._skipped([best.column])
        return PartCounts.of(best.text, _counted(passed, unknown), unasked)

    def _apply_caps(self, codes: Array, order: Array, of_caps: Sequence[Array]) -> None:
        kept = np.flatnonzero(codes == 0)
        groups = [group[kept] for group in of_caps]
        by = left_out(self._caps, groups, order[kept])
        for number, cap in enumerate(self._caps):
            codes[kept[by == number]] = self._code(f"more than {cap}")
        if len(kept) and (by >= 0).all():
            counts = ", ".join(
                f"{len(np.unique(group)):,} for {cap}"
                for cap, group in zip(self._caps, groups, strict=True)
            )
            raise ConditionError(
                f"the limits {' '.join(map(str, self._caps))} leave none of {len(kept):,} pairs: a "
                "share of 0.3 needs at least 4 different values, 0.1 at least 10; there are "
                f"{counts}"
            )


def _counted(passed: Array, unknown: Array) -> Array:
    """How many pass, how many fail, and of how many nothing is known."""
    return np.array([flags.sum() for flags in (passed, ~passed & ~unknown, unknown)])


def _flags(array: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    flags: np.ndarray[Any, np.dtype[np.bool_]] = array.to_numpy(zero_copy_only=False)
    return flags
