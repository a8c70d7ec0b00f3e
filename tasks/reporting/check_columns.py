"""What the columns of checks say about a pair: that it passes, that it does not, or nothing.

A pair passes a check from a bound on. The bounds only sort pairs into tables and say nothing about
which are kept: that is decided by the run's condition.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..storing.key_index import Array

LOWEST_SHARE = 0.1
"""Of a score whose bounds differ from dataset to dataset, the lowest tenth does not pass."""

_BOUNDS: Mapping[str, float] = {
    "consistency": 0.5,
    "perturbed": 0.75,
    "confidence": math.nan,
    "fluency": math.nan,
}
"""A pair passes from this value on; NaN if the bound depends on the dataset."""

MAX_COLUMNS = 40
"""Columns with results that are looked at: each is compared with every other."""

_RATING = "judge_"
_RATING_BOUND = 4.0

_PROBLEMS: Mapping[str, str] = {
    "blind_answerable": "blind",
    "swapped_same": "swapped",
    "near_duplicate_image": "duplicates",
    "duplicate_question": "duplicates",
    "contamination": "contamination",
    "form": "form",
}
"""Columns that name a problem, or say whether there is one, and the check each belongs to."""

_EVIDENCE: Collection[str] = frozenset(
    {
        "consistency_answer",
        "confidence_token",
        "fluency_token",
        "perturbed_answers",
        "blind_answer",
        "swapped_answer",
        "judge_reason",
        "form_detail",
        "image_difference",
        "question_share",
        "contamination_difference",
        "contamination_question",
        "benchmark_question",
    }
)
"""What was answered or found; it decides nothing."""


@dataclass(frozen=True)
class ResultColumn:
    """A column with the result of a check about each pair.

    Attributes:
        name: of the column.
        is_number: whether it is a number, and not a problem.
        bound: of numbers; a pair passes from this one on.
        good: of true and false, the one that passes.
    """

    name: str
    is_number: bool = False
    bound: float = math.nan
    good: bool = False

    @property
    def needs_bound(self) -> bool:
        """Whether the bound depends on the values of all pairs."""
        return self.is_number and math.isnan(self.bound)

    @property
    def rule(self) -> str:
        """When a pair passes, in words."""
        if self.needs_bound:
            return "no pair has a score"
        if self.is_number:
            return f"at least {self.bound:.3g}"
        return "true" if self.good else "no problem found"

    def bounded(self, values: Array) -> "ResultColumn":
        """The column with the bound that its lowest values are below, if it has none yet."""
        if not self.needs_bound or not len(values):
            return self
        return replace(self, bound=float(np.quantile(values, LOWEST_SHARE)))

    def outcomes(self, values: pa.Array) -> tuple[Array, Array]:
        """Whether each pair was judged, and whether it passes; a pair not judged does not."""
        if self.is_number:
            numbers = as_numbers(values)
            judged = ~np.isnan(numbers)
            passed = judged & ~(numbers < self.bound)
        else:
            judged = pc.is_valid(values).to_numpy(zero_copy_only=False)
            problem = pc.not_equal(values, "") if pa.types.is_string(values.type) else values
            found = pc.fill_null(problem, False).to_numpy(zero_copy_only=False)
            passed = judged & (found == self.good)
        return judged, passed


def as_numbers(values: pa.Array) -> Array:
    """A column as floating-point numbers; NaN where there is none."""
    numbers: Array = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def result_columns(schema: pa.Schema, checks: Collection[str] | None = None) -> list[ResultColumn]:
    """The columns of a file that have results of checks.

    Args:
        schema: of a file with pairs.
        checks: names of those that were made; by default any. Other columns belong to the dataset.
    """
    columns = [column for column in map(_column, schema) if column is not None]
    made = [column for column in columns if checks is None or _check_of(column.name) in checks]
    return made[:MAX_COLUMNS]


def is_evidence(name: str) -> bool:
    """Whether a column has what a check was answered or found, and not its result."""
    return name in _EVIDENCE


def _check_of(column: str) -> str:
    """The name of the check that gives a column with results."""
    return "judge" if column.startswith(_RATING) else _PROBLEMS.get(column, column)


def _column(field: pa.Field) -> ResultColumn | None:
    name, kind = field.name, field.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if name in _BOUNDS and is_number:
        return ResultColumn(name, is_number=True, bound=_BOUNDS[name])
    if name.startswith(_RATING) and is_number:
        return ResultColumn(name, is_number=True, bound=_RATING_BOUND)
    if name in _BOUNDS and pa.types.is_boolean(kind):
        return ResultColumn(name, good=True)
    if name in _PROBLEMS and (pa.types.is_boolean(kind) or pa.types.is_string(kind)):
        return ResultColumn(name)
    return None
