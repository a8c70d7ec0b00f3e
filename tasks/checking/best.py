"""The best share of the pairs, by a number that a check gives.

Thresholds of such numbers do not carry over between datasets and models, a share does. Pairs that
are as good as the worst one that is kept are kept, too: so the choice depends on nothing else.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ...serving.printable import printable
from ..errors import ConditionError
from .catalogue import missing_check

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Best:
    """A share of the pairs that is kept, of those that have a result.

    Attributes:
        column: a column of numbers, in which higher is better.
        share: between 0 and 1.
    """

    column: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """As users write it: `confidence=0.9`.

        Raises:
            ValueError: it is none; the message says what is.
        """
        column, _, share = (part.strip() for part in text.partition("="))
        try:
            number = float(share)
        except ValueError:
            number = 0.0
        if not column or not 0 < number < 1:
            raise ValueError(
                f"{printable(text, 100)!r} is no share to keep: write a column, =, and a share "
                "between 0 and 1, such as confidence=0.9"
            )
        return cls(column, number)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.column}={self.share:.15g}"

    @property
    def text(self) -> str:
        """What is kept, in words."""
        return f"best {100 * self.share:.10g} % by {printable(self.column, 100)}"

    def check(self, fields: Collection[pa.Field]) -> None:
        """Make sure that there is such a column.

        Args:
            fields: the columns that it may be.

        Raises:
            ConditionError: none has that name, or what it holds are no numbers.
        """
        names = [
            field.name
            for field in fields
            if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        ]
        if self.column not in names:
            known = printable(", ".join(names), 1000) or "none"
            remedy = f"those that there are: {known}"
            if check := missing_check(self.column, (field.name for field in fields)):
                remedy = f"run with --check {check}"
            raise ConditionError(
                f"keep-best {printable(str(self), 100)!r}: there is no such column of numbers; "
                f"{remedy}"
            )

    def bound(self, values: Array) -> float:
        """The least value that is kept; infinity if there are no values.

        Args:
            values: of all pairs that have one.
        """
        # Rounding must not take an eleventh pair from 100 at 0.1.
        kept = math.ceil(self.share * len(values) - 1e-9)
        if not kept:
            return math.inf
        place = len(values) - kept
        return float(np.partition(values, place)[place])
