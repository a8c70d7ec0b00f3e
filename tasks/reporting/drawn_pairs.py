"""Draws pairs of several groups from tables that are read in batches."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from ..storing.key_index import Array
from .judged_pairs import places_of

_Item = TypeVar("_Item")


class DrawnPairs(Generic[_Item]):
    """Pairs drawn at random, always the same: of each group as many, as far as it has so many.

    Args:
        count: how many pairs to draw.
        make: what is kept of a pair, from its batch and its number there.
        seed: another one draws others.
    """

    def __init__(
        self, count: int, make: Callable[[pa.RecordBatch, int], _Item], seed: int = 0
    ) -> None:
        self._count = count
        self._make = make
        self._seed = seed
        self._drawn: dict[str, list[tuple[int, int]]] = {}
        """Of each group, the first pairs by their numbers drawn: number and place."""
        self._items: dict[int, _Item] = {}

    def add(self, batch: pa.RecordBatch, groups: Mapping[str, Array]) -> None:
        """Take part of a batch into account: for each group, whether each pair belongs to it."""
        places = places_of(batch)
        draws = _draws(places, self._seed)
        for group, belongs in groups.items():
            numbers = np.flatnonzero(belongs)
            numbers = numbers[np.argsort(draws[numbers])][: self._count]
            drawn = list(zip(draws[numbers].tolist(), places[numbers].tolist(), strict=True))
            self._drawn[group] = sorted([*self._drawn.get(group, ()), *drawn])[: self._count]
            last = self._drawn[group][-1][0] if self._drawn[group] else 0
            for number, (draw, place) in zip(numbers.tolist(), drawn, strict=True):
                if draw <= last and place not in self._items:
                    self._items[place] = self._make(batch, number)
        wanted = {place for drawn in self._drawn.values() for _, place in drawn}
        self._items = {place: item for place, item in self._items.items() if place in wanted}

    def result(self) -> list[_Item]:
        """What was kept of the pairs drawn, in the order of the dataset."""
        chosen: set[int] = set()
        for rank in range(self._count):
            for drawn in self._drawn.values():
                if rank < len(drawn) and len(chosen) < self._count:
                    chosen.add(drawn[rank][1])
        return [self._items[place] for place in sorted(chosen)]


def _draws(places: Array, seed: int) -> Array:
    """A number for each place that has nothing to do with the order of the pairs (SplitMix64)."""
    step, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    mixed = places.astype(np.uint64) * np.uint64(step) + np.uint64((seed * step + step) & mask)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
