"""How well a check or a filter tells right pairs from wrong ones, where the truth is known."""

import math
from dataclasses import dataclass

import numpy as np

from ..storing.key_index import Array

_Z = 1.959964
"""Standard deviations of a normal distribution within which 95 % lie."""


@dataclass(frozen=True)
class Share:
    """A share of some things, and the interval that it lies in.

    Attributes:
        count: how many of them.
        of: how many there are.
    """

    count: int
    of: int

    @property
    def value(self) -> float | None:
        """0 to 1; None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval, by Wilson's score; 0 to 1 of nothing."""
        if not self.of:
            return 0.0, 1.0
        share, square = self.count / self.of, _Z * _Z
        scale = 1 + square / self.of
        centre = (share + square / (2 * self.of)) / scale
        spread = math.sqrt(share * (1 - share) / self.of + square / (4 * self.of**2)) * _Z / scale
        return max(0.0, centre - spread), min(1.0, centre + spread)


@dataclass(frozen=True)
class Detection:
    """Pairs whose truth is known, by whether they are right and whether they pass.

    Attributes:
        right_passed: right pairs that pass.
        wrong_passed: wrong pairs that pass.
        right_failed: right pairs that do not pass.
        wrong_failed: wrong pairs that do not pass.
    """

    right_passed: int = 0
    wrong_passed: int = 0
    right_failed: int = 0
    wrong_failed: int = 0

    def __add__(self, other: "Detection") -> "Detection":
        return Detection(
            self.right_passed + other.right_passed,
            self.wrong_passed + other.wrong_passed,
            self.right_failed + other.right_failed,
            self.wrong_failed + other.wrong_failed,
        )

    @property
    def before(self) -> Share:
        """The share of right pairs among all of them."""
        right = self.right_passed + self.right_failed
        return Share(right, right + self.wrong_passed + self.wrong_failed)

    @property
    def after(self) -> Share:
        """The share of right pairs among those that pass."""
        return Share(self.right_passed, self.right_passed + self.wrong_passed)

    @property
    def passed(self) -> Share:
        """The share of pairs that pass."""
        return Share(self.after.of, self.before.of)

    @property
    def precision(self) -> Share:
        """The share of wrong pairs among those that do not pass."""
        return Share(self.wrong_failed, self.wrong_failed + self.right_failed)

    @property
    def recall(self) -> Share:
        """The share of the wrong pairs that do not pass."""
        return Share(self.wrong_failed, self.wrong_failed + self.wrong_passed)

    @property
    def lost(self) -> Share:
        """The share of the right pairs that do not pass."""
        return Share(self.right_failed, self.right_failed + self.right_passed)


def detect(known: Array, right: Array, passed: Array) -> Detection:
    """Count the pairs whose truth is known.

    Args:
        known: whether it is, of each pair.
        right: whether the pair is right.
        passed: whether it passes.
    """
    right, passed = right[known], passed[known]
    return Detection(
        right_passed=int(np.count_nonzero(right & passed)),
        wrong_passed=int(np.count_nonzero(~right & passed)),
        right_failed=int(np.count_nonzero(right & ~passed)),
        wrong_failed=int(np.count_nonzero(~right & ~passed)),
    )


def auc(values: Array, right: Array) -> float | None:
    """The probability that a right pair has a higher value than a wrong one; half for equal ones.

    That is the area under the ROC curve; None if all pairs are right, or all are wrong.
    """
    levels, places = np.unique(values, return_inverse=True)
    rights = np.bincount(places[right], minlength=len(levels))
    wrongs = np.bincount(places[~right], minlength=len(levels))
    pairs = int(rights.sum()) * int(wrongs.sum())
    if not pairs:
        return None
    lower = np.cumsum(wrongs) - wrongs
    return float(rights @ (lower + wrongs / 2)) / pairs
