"""What is drawn for a row: always the same for the same content, in any process and any order."""

import hashlib
from bisect import bisect
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import TypeVar

from .keys import canonical_digest
from .style import PromptInput

T = TypeVar("T")


class Draws:
    """The random choices of one row.

    They depend on its images, the columns that the style uses, the number of the sample, and a
    seed; not on other rows or columns: both may be added to a dataset.

    Args:
        prompt_input: the row.
        seed: of all choices.
        columns: the columns that the style uses, if they are there.
    """

    def __init__(self, prompt_input: PromptInput, seed: int, columns: Collection[str] = ()) -> None:
        record = prompt_input.record
        self._seed = canonical_digest(
            {
                "images": list(prompt_input.image_ids),
                "columns": {name: record[name] for name in columns if name in record},
                "sample": prompt_input.sample,
                "seed": seed,
            }
        )

    def choose(self, what: str, weights: Mapping[T, float]) -> T:
        """One of the keys, each with a probability proportional to its weight.

        Args:
            what: what it is chosen for; choices for different purposes are independent.
            weights: positive ones.
        """
        digest = hashlib.sha256(self._seed + what.encode()).digest()
        totals = list(accumulate(weights.values()))
        point = int.from_bytes(digest[:8], "big") / 2**64 * totals[-1]
        return list(weights)[min(bisect(totals, point), len(totals) - 1)]
