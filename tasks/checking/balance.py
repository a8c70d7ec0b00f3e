"""Caps: how many pairs of one type, one answer or one image are kept.

Which pairs of a value are kept is drawn with a seed: each pair has a place in an order that only
the seed, its row's key and its number decide, and the first ones stay. So the choice does not
depend on how pairs are read, and a dataset that grows keeps most of it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

CapColumn = Literal["type", "answer", "image"]

NO_GROUP = 0
"""The group of pairs without a value, such as those of an unknown type: no cap limits them."""

_MAX_ROUNDS = 100
"""A cap can make the share of another one too large again; it rarely takes more than two rounds."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit on the pairs that share a value.

    Attributes:
        column: what they share.
        limit: at most so many pairs, 1 or more; or, below 1, at most this share of all that are
            kept in the end.
    """

    column: CapColumn
    limit: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """A cap as users write it: `type=0.3` or `image=5`.

        Raises:
            ValueError: it is none; the message says what is.
        """
        column, _, limit = (part.strip() for part in text.partition("="))
        if column not in get_args(CapColumn):
            columns = ", ".join(get_args(CapColumn))
            raise ValueError(
                f"{text[:100]!r} is no limit: write what it is per ({columns}), =, and a share or "
                "a number, such as type=0.3 or image=5"
            )
        is_number = limit.isascii() and limit.isdigit() and len(limit) <= 15
        try:
            number = float(limit)
        except ValueError:
            number = 0.0
        if not (number >= 1 if is_number else 0 < number < 1):
            raise ValueError(
                f"{text[:100]!r} is no limit: after {column}= comes a share between 0 and 1, such "
                "as 0.3, or a whole number of pairs, such as 5"
            )
        return cls(cast("CapColumn", column), number)

    def __str__(self) -> str:
        """As users write it."""
        return f"{self.column}={self.limit:.15g}"


def order_of(seed: int, pairs: Iterable[tuple[str, int]]) -> Array:
    """The places of pairs in an order that a seed draws.

    Args:
        seed: another one draws another order.
        pairs: the row key of each pair, and its number in the row.
    """
    key = str(seed).encode()[:64]
    digests = b"".join(
        hashlib.blake2b(f"{row}/{number}".encode(), digest_size=8, key=key).digest()
        for row, number in pairs
    )
    return np.frombuffer(digests, np.uint64)


def groups_of(values: Iterable[str | None]) -> Array:
    """A number for each value, the same for the same value; `NO_GROUP` for none."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=8).digest() if value else bytes(8)
        for value in values
    )
    return np.frombuffer(digests, np.uint64)


def left_out(caps: Sequence[Cap], groups: Sequence[Array], order: Array) -> Array:
    """Which pairs the caps leave out.

    Args:
        caps: the limits. They hold together, unless they contradict one another for long.
        groups: for each cap, the group of each pair, see `groups_of`.
        order: of each pair, see `order_of`. Pairs of one place are left out from the end.

    Returns:
        For each pair, the number of the cap that leaves it out, from 0; -1 if it is kept.
    """
    by = np.full(len(order), -1, np.int16)
    ranked = np.argsort(order, kind="stable")
    codes = [np.unique(group[ranked], return_inverse=True)[1] for group in groups]
    limited = [group[ranked] != NO_GROUP for group in groups]
    for _ in range(_MAX_ROUNDS):
        before = np.count_nonzero(by >= 0)
        for number, cap in enumerate(caps):
            kept = by[ranked] < 0
            dropped = _beyond(cap.limit, codes[number], kept & limited[number], kept)
            by[ranked[dropped]] = number
        if np.count_nonzero(by >= 0) == before:
            break
    return by


def _beyond(limit: float, codes: Array, limited: Array, kept: Array) -> Array:
    """Positions of the pairs that come after the first ones of their group."""
    at = np.flatnonzero(limited)
    counts = np.bincount(codes[at])
    if limit < 1:
        limit = _largest(limit, counts, int(np.count_nonzero(kept)) - len(at))
    by_group = at[np.argsort(codes[at], kind="stable")]
    starts = np.cumsum(counts) - counts
    place = np.arange(len(by_group)) - np.repeat(starts, counts)
    return by_group[place >= limit]


def _largest(share: float, counts: Array, others: int) -> int:
    """The largest number of pairs of a group that is at most a share of all that are kept then.

    What is kept grows with the limit, but ever more slowly: up to one limit the share holds, and
    beyond it does not.

    Args:
        share: between 0 and 1.
        counts: how many pairs each group has.
        others: pairs in no group.
    """
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        # Rounding must not take a pair from 3 of 10 at 0.3.
        fits = middle <= share * (int(np.minimum(counts, middle).sum()) + others) + 1e-9
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
