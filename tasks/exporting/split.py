"""Splits the judged pairs of an output into those that are kept and those that are filtered.

`checks/judged.parquet` has all pairs and what every check says of them. From it come
`pairs.parquet`, which trainers' exports read, and `filtered.parquet`, which also says why.
`split_plan.py` decides; here it is written.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ..checking.balance import Cap
from ..checking.best import Best
from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from ..storing.layout import FILTERED, JUDGED, MAX_METADATA_BYTES, SPLIT
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .pairs_parquet import FILTERED_BY, PAIRS, PAIRS_SCHEMA
from .split_plan import PairSplit, SplitPlan, judged_schema, plan_split

_REMEDY = "run the same command again to rewrite it"

_ROWS_PER_GROUP = 4096
_BYTES_PER_GROUP = 8 << 20


class SplitRecord(BaseModel):
    """What the kept and the filtered pairs of an output were made from.

    Attributes:
        keep: the condition; empty if there is none.
        keep_best: the shares to keep.
        max_per: the limits.
        seed: of the limits.
        judged: stamp of JUDGED.
        version: of this package.
        pairs: stamp of `pairs.parquet`.
        filtered: stamp of FILTERED.
        split: the counts.
    """

    model_config = ConfigDict(frozen=True)

    keep: str
    keep_best: tuple[str, ...]
    max_per: tuple[str, ...]
    seed: int
    judged: str
    version: str
    pairs: str
    filtered: str
    split: PairSplit


_MadeFrom = tuple[str, tuple[str, ...], tuple[str, ...], int, str, str]
"""The first fields of a `SplitRecord`."""


def split_pairs(
    store: ObjectStore,
    keep: str = "",
    caps: Sequence[Cap] = (),
    seed: int = 0,
    *,
    best: Sequence[Best] = (),
) -> PairSplit:
    """Write `filtered.parquet`, then `pairs.parquet`, then the record; no request is made.

    Without a condition and limits all pairs are kept, and `filtered.parquet` has none. Files that
    were made from the same, and that nobody has changed, stay as they are.

    Args:
        store: the output, which has JUDGED.
        keep: the condition.
        caps: limits on what it keeps.
        seed: draws the pairs that a limit leaves out.
        best: shares to keep of what the condition keeps, before the limits.

    Raises:
        ConditionError: the condition is none, names a column that there is not, or cannot be
            evaluated; a share is of no column of numbers; or the limits leave no pair.
        ObjectCorruptedError: JUDGED is corrupted.
        ObjectMissingError: there is none.
        StoreError: the output cannot be read or written.
    """
    shares, limits = tuple(map(str, best)), tuple(map(str, caps))
    made_from = (keep, shares, limits, seed, store.stamp(JUDGED), version("prefect-imageqa"))
    last = last_split(store)
    if last is not None and _is_current(store, last, made_from):
        return last.split
    plan = plan_split(store, keep, caps, seed, best=best)
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as name:
        kept, filtered = Path(name) / "kept", Path(name) / "filtered"
        _write(store, plan, kept, filtered)
        store.put(FILTERED, filtered)
        store.put(PAIRS, kept)
    stamps = (store.stamp(PAIRS), store.stamp(FILTERED))
    names = ("keep", "keep_best", "max_per", "seed", "judged", "version", "pairs", "filtered")
    values = dict(zip(names, (*made_from, *stamps), strict=True))
    record = SplitRecord.model_validate({**values, "split": plan.split})
    store.write(SPLIT, json.dumps(record.model_dump(mode="json"), indent=2).encode())
    return plan.split


def last_split(store: ObjectStore) -> SplitRecord | None:
    """What the pairs of an output were split by last; None if that is not known."""
    try:
        return SplitRecord.model_validate_json(store.read(SPLIT, MAX_METADATA_BYTES))
    except (ObjectMissingError, ObjectCorruptedError, ValidationError):
        return None


def _is_current(store: ObjectStore, last: SplitRecord, made_from: _MadeFrom) -> bool:
    same = (last.keep, last.keep_best, last.max_per, last.seed, last.judged, last.version)
    if same != made_from:
        return False
    try:
        return (store.stamp(PAIRS), store.stamp(FILTERED)) == (last.pairs, last.filtered)
    except ObjectMissingError:
        return False


def _write(store: ObjectStore, plan: SplitPlan, kept: Path, filtered: Path) -> None:
    """Write both files, streamed."""
    with reported_corruption(store, JUDGED, _REMEDY):
        schema = judged_schema(store).remove_metadata()
        with_reason = schema.append(pa.field(FILTERED_BY, pa.string()))
        done = 0
        with _writing(kept, schema) as keep, _writing(filtered, with_reason) as drop:
            for batch in bounded_batches(store, JUDGED, PAIRS_SCHEMA):
                # Names and types are those of the file, but texts are no longer dictionaries.
                batch = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
                reasons = plan.reasons_of(done, len(batch))
                done += len(batch)
                is_kept = reasons.is_null()
                keep.add(batch.filter(is_kept))
                drop.add(batch.append_column(FILTERED_BY, reasons).filter(pc.invert(is_kept)))
        if done != plan.split.pairs + plan.split.filtered_pairs:
            raise ValueError("it has changed")


class _Groups:
    """Writes batches of any size as row groups of a fair size."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._batches: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        if len(batch):
            self._batches.append(batch)
        rows = sum(map(len, self._batches))
        if rows >= _ROWS_PER_GROUP or sum(b.nbytes for b in self._batches) >= _BYTES_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
        self._batches.clear()


@contextmanager
def _writing(path: Path, schema: pa.Schema) -> Iterator[_Groups]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        groups = _Groups(writer)
        yield groups
        groups.flush()
