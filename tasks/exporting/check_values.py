"""What the checks of a run say of all pairs, on its way into `checks/judged.parquet`."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..checking import Check, Values
from ..checking.conditions import Condition
from ..errors import StoreError
from ..object_store.store import ObjectStore
from ..storing.key_index import Array
from ..storing.layout import ALL_PAIRS
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .export import REWRITE_REMEDY
from .pairs_parquet import PAIRS_SCHEMA, encodable

MAX_EVIDENCE = 4000
"""Characters of a text that a check gives; what is longer is cut. The whole reply is in the parts
of the check."""


class CheckValues:
    """What each check says of each pair, and which pairs the condition drops because of it.

    A check is computed once, and as late as possible: what the condition needs before all of them
    are made is kept in a file until then. In memory is a byte a pair for each check.

    Args:
        store: the output, which has `ALL_PAIRS`.
        checks: all that will be made.
        condition: on their columns and those of the pairs.
        pairs: how many there are.
        folder: for the files.
    """

    def __init__(
        self,
        store: ObjectStore,
        checks: Sequence[Check],
        condition: Condition,
        pairs: int,
        folder: str | Path,
    ) -> None:
        self._store = store
        self._checks = {check.name: check for check in checks}
        self._check_of = {field.name: check.name for check in checks for field in check.columns}
        fields = pa.schema([*PAIRS_SCHEMA, *(each for check in checks for each in check.columns)])
        self._condition = condition
        self._fields = [fields.field(name) for name in condition.columns]
        self._folder = Path(folder)
        self._left = dict(enumerate(condition.parts))
        self._dropped: Array = np.zeros(pairs, bool)
        self._values: dict[str, Iterator[Values]] = {}
        self._skipped: dict[str, Array] = {}
        self._files: dict[str, pa.ipc.RecordBatchFileReader] = {}

    def add(self, check: str, values: Iterator[Values], skipped: Array) -> None:
        """Add what a check says of each pair, in order; and which pairs it was not made of."""
        self._values[check] = values
        self._skipped[check] = skipped

    def skipped(self, check: str) -> int:
        """How many pairs a check was not made of."""
        return int(self._skipped[check].sum())

    def dropped(self) -> Array:
        """For each pair, whether a part of the condition drops it, of those that are known by now.

        So it does if a check that was made has no result.

        Raises:
            ConditionError: a part cannot be evaluated for a pair.
        """
        known = {*PAIRS_SCHEMA.names}
        known.update(name for name, check in self._check_of.items() if check in self._values)
        ready = [number for number, part in self._left.items() if known.issuperset(part.columns)]
        names = {name for number in ready for name in self._left.pop(number).columns}
        if ready:
            found = [np.empty(0, bool)]
            for batch in self._batches(names):
                results = self._condition.evaluate(batch)
                met = np.ones(len(batch), bool)
                for number in ready:
                    met &= pc.fill_null(results[number], False).to_numpy()
                found.append(~met)
            self._dropped = self._dropped | np.concatenate(found)
        return self._dropped

    def digest(self, inputs: str, reading: Collection[str]) -> str:
        """Digest of all that the values are made from.

        Args:
            inputs: digest of the pairs, and of what was asked and answered.
            reading: checks that also read other files: what they say is in the digest itself.
        """
        digest = hashlib.sha256(inputs.encode())
        for name, skipped in self._skipped.items():
            digest.update(name.encode())
            digest.update(np.packbits(skipped).tobytes())
            if name in reading:
                self._keep(name)
                with self._path(name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def arrays(self, check: str, batch: int, count: int) -> Sequence[pa.Array]:
        """The columns of a check, of the pairs of a batch of `all_batches`; read once, in order.

        Raises:
            StoreError: it does not say something of each pair.
        """
        if file := self._files.get(check):
            columns: Sequence[pa.Array] = file.get_batch(batch).columns
            return columns
        rows = list(islice(self._values[check], count))
        if len(rows) < count:
            raise StoreError(
                f"{self._store.uri_of(ALL_PAIRS)} has more pairs than check {check} has judged: "
                "run again"
            )
        fields = self._checks[check].columns
        return [
            pa.array(map(_bounded, column), field.type)
            for field, column in zip(fields, zip(*rows, strict=True), strict=True)
        ]

    def _keep(self, check: str) -> None:
        """Compute a check into a file, unless it is there."""
        if check in self._files:
            return
        path, schema = str(self._path(check)), pa.schema(self._checks[check].columns)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(path, schema, options=options) as writer:
            for batch, count in enumerate(self._lengths):
                arrays = self.arrays(check, batch, count)
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        self._files[check] = pa.ipc.open_file(pa.memory_map(path))

    def _path(self, check: str) -> Path:
        return self._folder / check

    @cached_property
    def _lengths(self) -> Sequence[int]:
        return [len(batch) for batch in all_batches(self._store)]

    def _batches(self, names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The columns of the condition, null but for these, which are known."""
        checks = {self._check_of[name] for name in names if name in self._check_of}
        for check in checks:
            self._keep(check)
        own = all_batches(self._store) if any(name not in self._check_of for name in names) else ()
        for number, (count, pairs) in enumerate(zip_longest(self._lengths, own)):
            columns = {"row": pa.nulls(count)}  # one at least, for the number of rows
            columns |= {field.name: pa.nulls(count, field.type) for field in self._fields}
            read = [self._files[check].get_batch(number) for check in checks]
            for source in [*read, *filter(None, [pairs])]:
                columns |= {
                    name: source.column(name) for name in names if name in source.schema.names
                }
            yield pa.RecordBatch.from_pydict(columns)


def all_batches(store: ObjectStore) -> Iterator[pa.RecordBatch]:
    """All pairs of an output, before any check, in batches that are always the same.

    Raises:
        ObjectCorruptedError: they are corrupted.
        StoreError: they cannot be read.
    """
    with reported_corruption(store, ALL_PAIRS, REWRITE_REMEDY):
        yield from bounded_batches(store, ALL_PAIRS, PAIRS_SCHEMA)


def _bounded(value: Any) -> Any:
    return encodable(value[:MAX_EVIDENCE]) if isinstance(value, str) else value
