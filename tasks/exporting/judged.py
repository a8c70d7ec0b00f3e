"""`checks/judged.parquet`: all pairs of an output, with what every check says of them."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..checking import AskedCheck, Check, CheckSettings, Values, open_check
from ..checking.conditions import Condition
from ..checking.hashed_rows import ImageSource
from ..concurrency import TASK_OPTIONS
from ..errors import ObjectCorruptedError, ObjectMissingError, StoreError
from ..images.prepare import ImageSettings
from ..object_store.store import ObjectStore
from ..runs.checks import Checks
from ..storing.layout import ALL_PAIRS, JUDGED, JUDGED_RECORD, MAX_METADATA_BYTES
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .export import REWRITE_REMEDY
from .pairs_parquet import PAIRS, PAIRS_SCHEMA, dataset_fields, encodable

MAX_EVIDENCE = 4000
"""Characters of a text that a check gives; what is longer is cut. The whole reply is in the parts
of the check."""


@dataclass(frozen=True)
class OpenChecks:
    """The checks of a run.

    Attributes:
        wanted: what the run says about them.
        checks: those that are made.
    """

    wanted: Checks
    checks: Sequence[Check]

    @property
    def pairs_name(self) -> str:
        """Where the export puts the pairs: where none is checked or filtered, in their place."""
        return ALL_PAIRS if self.wanted.are_wanted else PAIRS

    @property
    def requests(self) -> int:
        """How many requests they send for a pair."""
        return sum(check.times for check in self.checks if isinstance(check, AskedCheck))

    @property
    def column_names(self) -> list[str]:
        """The names of the columns that they give."""
        return [field.name for field in check_fields(self.checks)]


def open_checks(
    wanted: Checks,
    store: ObjectStore,
    limits: ImageSettings,
    source: Callable[[], ImageSource],
    *,
    guided: bool = True,
) -> OpenChecks:
    """Open the checks of a run; its condition is looked at, too, before anything is asked.

    Args:
        wanted: what the run says about them.
        store: the output.
        limits: on images.
        source: the rows of the dataset, when pairs are judged.
        guided: whether the server makes replies follow a JSON schema.

    Raises:
        ImageQAError: something that a check needs cannot be used, or the condition is none.
    """
    settings = CheckSettings(
        store,
        source,
        times=wanted.times,
        none_option=wanted.none_option,
        rubric=wanted.rubric or "",
        guided=guided,
        benchmarks=wanted.benchmarks,
        limits=limits,
        seed=wanted.seed,
    )
    checks = [open_check(name, settings) for name in wanted.names]
    if keep := (wanted.keep or "").strip():
        Condition(keep, pa.schema([*PAIRS_SCHEMA, *check_fields(checks)]))
    return OpenChecks(wanted, checks)


def check_fields(checks: Sequence[Check]) -> list[pa.Field]:
    """The columns of all checks, in their order."""
    return [field for check in checks for field in check.columns]


_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
"""Names are shown: a forged record must not inject control characters."""


class Judged(BaseModel):
    """What `checks/judged.parquet` was made from.

    Attributes:
        inputs: digest of that; empty if it is not known.
        stamp: of the file, see `ObjectStore.stamp`.
        pairs: how many pairs it has.
        unjudged: by check, of how many of them it has no result; without checks that judged all.
    """

    model_config = ConfigDict(frozen=True)

    inputs: str
    stamp: str
    pairs: _Count
    unjudged: Mapping[_Name, _Count]


def last_judged(store: ObjectStore, inputs: str) -> Judged | None:
    """The judged pairs in an output if they were made from these inputs, and are unchanged."""
    try:
        judged = Judged.model_validate_json(store.read(JUDGED_RECORD, MAX_METADATA_BYTES))
        is_right = inputs and judged.inputs == inputs and judged.stamp == store.stamp(JUDGED)
    except (ObjectMissingError, ObjectCorruptedError, ValidationError):
        return None
    return judged if is_right else None


@task(name="judge", task_run_name="judge", **TASK_OPTIONS)
def write_judged(
    store: ObjectStore,
    checks: Sequence[Check],
    values: Sequence[Iterator[Values]],
    inputs: str = "",
) -> Judged:
    """Write the judged pairs, streamed.

    Args:
        store: the output, which has `ALL_PAIRS`.
        checks: the checks.
        values: of each check, what it says of each pair, in order.
        inputs: digest of what the values are made from; empty if it is not known.

    Raises:
        ObjectCorruptedError: the pairs are corrupted.
        StoreError: they cannot be read, or the judged ones not be written.
    """
    unjudged: Counter[str] = Counter()
    pairs = 0
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        path = Path(folder) / "judged"
        own = _dataset_fields(store)
        schema = pa.schema([*PAIRS_SCHEMA, *check_fields(checks), *own])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in _batches(store):
                columns = list(batch.columns)
                said = list[pa.Array]()
                for check, iterator in zip(checks, values, strict=True):
                    rows = list(islice(iterator, len(batch)))
                    if len(rows) < len(batch):
                        raise StoreError(
                            f"{store.uri_of(ALL_PAIRS)} has more pairs than check {check.name} "
                            f"has judged, {pairs + len(rows):,}: run again"
                        )
                    said += _arrays(check, rows)
                    unjudged[check.name] += sum(row[0] is None for row in rows)
                place = len(PAIRS_SCHEMA)
                arrays = [*columns[:place], *said, *columns[place:]]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                pairs += len(batch)
        store.put(JUDGED, path)
    judged = Judged(
        inputs=inputs,
        stamp=store.stamp(JUDGED),
        pairs=pairs,
        unjudged={name: count for name, count in unjudged.items() if count},
    )
    store.write(JUDGED_RECORD, json.dumps(judged.model_dump(mode="json"), indent=2).encode())
    return judged


def _dataset_fields(store: ObjectStore) -> list[pa.Field]:
    with reported_corruption(store, ALL_PAIRS, REWRITE_REMEDY), store.open(ALL_PAIRS) as source:
        file = pq.ParquetFile(pa.PythonFile(source, mode="r"))
        return dataset_fields(file.schema_arrow, PAIRS_SCHEMA)


def _batches(store: ObjectStore) -> Iterator[pa.RecordBatch]:
    with reported_corruption(store, ALL_PAIRS, REWRITE_REMEDY):
        yield from bounded_batches(store, ALL_PAIRS, PAIRS_SCHEMA)


def _arrays(check: Check, rows: Sequence[Values]) -> Iterator[pa.Array]:
    """The columns of a check, of some pairs."""
    for field, column in zip(check.columns, zip(*rows, strict=True), strict=True):
        yield pa.array(map(_bounded, column), field.type)


def _bounded(value: Any) -> Any:
    return encodable(value[:MAX_EVIDENCE]) if isinstance(value, str) else value
