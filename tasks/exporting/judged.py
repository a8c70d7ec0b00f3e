"""`checks/judged.parquet`: all pairs of an output, with what every check says of them."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..checking import CHECK_NAMES, AskedCheck, Check, CheckSettings, open_check
from ..checking.conditions import Condition
from ..checking.hashed_rows import ImageSource
from ..concurrency import TASK_OPTIONS
from ..errors import ObjectCorruptedError, ObjectMissingError
from ..images.prepare import ImageSettings
from ..object_store.store import ObjectStore
from ..runs.checks import Checks
from ..storing.layout import ALL_PAIRS, ANSWERED_PAIRS, JUDGED, JUDGED_RECORD, MAX_METADATA_BYTES
from ..storing.parts import reported_corruption
from .check_values import CheckValues, all_batches
from .export import REWRITE_REMEDY
from .pairs_parquet import LATER_CHECKS, PAIRS, PAIRS_SCHEMA, dataset_fields


@dataclass(frozen=True)
class OpenChecks:
    """The checks of a run.

    Attributes:
        wanted: what the run says about them.
        checks: those that are made.
        dropping: the condition on what is asked about; without parts if all pairs are.
    """

    wanted: Checks
    checks: Sequence[Check]
    dropping: Condition

    @property
    def by_cost(self) -> list[Check]:
        """The checks in the order in which they are made, so that dropped pairs cost little.

        Those that ask nothing come first, then those that send no image, then those with fewer
        requests for a pair; else it is the order of `CHECK_NAMES`. It does not depend on the
        condition: so a stricter one needs no request.
        """
        names: list[str] = list(CHECK_NAMES)

        def cost(check: Check) -> tuple[int, ...]:
            if not isinstance(check, AskedCheck):
                return ()
            return check.sends_image, check.times, names.index(check.name)

        return sorted(self.checks, key=cost)

    @property
    def pairs_name(self) -> str:
        """Where the export puts the pairs: where none is checked or filtered, in their place."""
        if self.wanted.negatives:
            return ANSWERED_PAIRS
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
) -> OpenChecks:
    """Open the checks of a run; its condition is looked at, too, before anything is asked.

    Args:
        wanted: what the run says about them.
        store: the output.
        limits: on images.
        source: the rows of the dataset, when pairs are judged.

    Raises:
        ImageQAError: something that a check needs cannot be used, the condition is none, or no
            check gives the numbers of which the best are to be kept.
    """
    settings = CheckSettings(
        store,
        source,
        times=wanted.times,
        none_option=wanted.none_option,
        rubric=wanted.rubric or "",
        benchmarks=wanted.benchmarks,
        limits=limits,
        seed=wanted.seed,
    )
    checks = [open_check(name, settings) for name in wanted.names]
    schema = pa.schema([*PAIRS_SCHEMA, *check_fields(checks)])
    condition = Condition(wanted.keep or "", schema)
    for best in wanted.best:
        best.check(check_fields(checks))
    return OpenChecks(wanted, checks, Condition("", schema) if wanted.ask_dropped else condition)


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
        unjudged: by check, of how many of them it has no result; without checks that judged all,
            and without pairs that were dropped before.
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


@task(name="judged-pairs", task_run_name="judged-pairs", **TASK_OPTIONS)
def write_judged(
    store: ObjectStore, checks: Sequence[Check], values: CheckValues, inputs: str = ""
) -> Judged:
    """Write the judged pairs, streamed.

    Args:
        store: the output, which has `ALL_PAIRS`.
        checks: the checks, in the order of their columns.
        values: what they say of each pair.
        inputs: digest of what the values are made from; empty if it is not known.

    Raises:
        ObjectCorruptedError: the pairs are corrupted.
        StoreError: they cannot be read, or the judged ones not be written.
    """
    unjudged = Counter({check.name: -values.skipped(check.name) for check in checks})
    pairs = 0
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        path = Path(folder) / "judged"
        schema = _schema(store, checks, values)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for number, batch in enumerate(all_batches(store)):
                said = list[pa.Array]()
                for check in checks:
                    arrays = values.arrays(check.name, number, len(batch))
                    unjudged[check.name] += arrays[0].null_count
                    said += arrays
                place = len(PAIRS_SCHEMA)
                columns = [*batch.columns[:place], *said, *batch.columns[place:]]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
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


def _schema(store: ObjectStore, checks: Sequence[Check], values: CheckValues) -> pa.Schema:
    with reported_corruption(store, ALL_PAIRS, REWRITE_REMEDY), store.open(ALL_PAIRS) as source:
        file = pq.ParquetFile(pa.PythonFile(source, mode="r"))
        own = dataset_fields(file.schema_arrow, PAIRS_SCHEMA)
    later = " ".join(
        f"{field.name}={values.skipped(check.name)}" for check in checks for field in check.columns
    )
    return pa.schema([*PAIRS_SCHEMA, *check_fields(checks), *own], {LATER_CHECKS: later})
