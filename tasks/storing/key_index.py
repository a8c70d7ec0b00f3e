"""Row keys by the million: where each one's row is stored, in sorted arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

KEY = np.dtype("S16")
"""A row key. Elements lose trailing zero bytes when they are read one by one: compare arrays."""

LOCATION = np.dtype([("file", np.int32), ("row", np.int32), ("rank", np.int64), ("kind", np.uint8)])
"""Where a row is stored; see `Location`."""

_FOLDED_AT = 65_536
"""Newly put keys are folded into the arrays at this many (12 MB as a dict)."""

_KEYS_PER_PIECE = 4096


class Location(NamedTuple):
    """Where a row is stored.

    Attributes:
        file: number of the object.
        row: number of the row in it.
        rank: of several places of one key the one with the highest rank counts.
        kind: number of the reason in `Kind`, for a quarantined row.
    """

    file: int
    row: int
    rank: int
    kind: int = 0


@dataclass(frozen=True)
class Found:
    """What an index knows of some keys: `places[i]` counts only where `known[i]`."""

    known: Array
    places: Array


class KeyIndex:
    """Row key -> place, 33 bytes each. Not for several threads at once."""

    def __init__(self) -> None:
        self._keys = np.empty(0, KEY)
        self._places = np.empty(0, LOCATION)
        self._recent: dict[bytes, Location] = {}

    def __len__(self) -> int:
        self._fold()
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or self._position(key) is not None

    def get(self, key: bytes) -> Location | None:
        """The place of a key."""
        if (recent := self._recent.get(key)) is not None:
            return recent
        position = self._position(key)
        return None if position is None else Location(*self._places[position].item())

    def put(self, key: bytes, place: Location) -> None:
        """Enter a key; it stays where it is if it is known with a higher rank."""
        known = self.get(key)
        if known is None or known.rank <= place.rank:
            self._recent[key] = place
        if len(self._recent) >= _FOLDED_AT:
            self._fold()

    def extend(self, entries: Iterable[tuple[Array, Array]]) -> None:
        """Enter many keys at once, as arrays of `KEY` and `LOCATION`."""
        parts = [(self._keys, self._places), *entries]
        if len(parts) == 1:
            return
        keys = np.concatenate([keys for keys, _ in parts])
        places = np.concatenate([places for _, places in parts])
        # Or three copies of every key are held below.
        parts.clear()
        self._keys, self._places = np.empty(0, KEY), np.empty(0, LOCATION)
        order = np.lexsort((places["rank"], keys))
        keys = keys[order]
        last = np.ones(len(keys), bool)
        last[:-1] = keys[:-1] != keys[1:]
        self._keys, self._places = keys[last], places[order[last]]

    def find(self, keys: Array) -> Found:
        """Look many keys up at once."""
        self._fold()
        if not len(self._keys):
            return Found(np.zeros(len(keys), bool), np.zeros(len(keys), LOCATION))
        positions = np.searchsorted(self._keys, keys)
        positions[positions == len(self._keys)] = 0
        return Found(self._keys[positions] == keys, self._places[positions])

    def forget(self, files: Iterable[int]) -> None:
        """Forget all keys whose row is in one of some objects."""
        self._fold()
        kept = ~np.isin(self._places["file"], list(files))
        self._keys, self._places = self._keys[kept], self._places[kept]

    def entries(self) -> tuple[Array, Array]:
        """All keys, sorted, and their places."""
        self._fold()
        return self._keys, self._places

    def _position(self, key: bytes) -> int | None:
        position = int(np.searchsorted(self._keys, np.array(key, KEY)))
        found = self._keys[position : position + 1].tobytes() == key
        return position if found else None

    def _fold(self) -> None:
        if self._recent:
            keys = np.frombuffer(b"".join(self._recent), KEY)
            places = np.array(list(self._recent.values()), LOCATION)
            self._recent = {}
            self.extend([(keys, places)])


def pack_keys(keys: Sequence[str]) -> Array:
    """Row keys as an array of `KEY`.

    Raises:
        ValueError: something is not a row key.
    """
    pieces = [
        bytes.fromhex("".join(keys[start : start + _KEYS_PER_PIECE]))
        for start in range(0, len(keys), _KEYS_PER_PIECE)
    ]
    packed = np.frombuffer(b"".join(pieces), KEY)
    if len(packed) != len(keys):
        raise ValueError("not row keys")
    return packed
