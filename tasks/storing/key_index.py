"""An index of millions of row keys: where each row is stored, in sorted arrays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

KEY = np.dtype("S16")
"""A row key. Elements lose trailing zero bytes when they are read one by one: compare arrays."""

LOCATION = np.dtype([("file", np.int32), ("row", np.int32), ("rank", np.int64), ("kind", np.uint8)])
"""Where a row is stored; see `Location`."""

_MAX_RECENT = 4096
_RECENT_SHARE = 1 / 64
"""Keys put one by one are merged into the arrays when there are this many (1 MB as a dict), or this
share of all keys: merging copies the arrays, which must not happen more often the longer they are.
"""

_MIN_EXTENSION = 65_536
_EXTENSION_SHARE = 1 / 8
"""Many keys are merged into the arrays in pieces of this many, or this share of all keys."""

_KEYS_PER_PIECE = 65_536


class Location(NamedTuple):
    """Where a row is stored.

    Attributes:
        file: number of the part.
        row: number of the row within the part.
        rank: of several copies of a row, the one with the highest rank counts.
        kind: number of the row's `Kind` if it is quarantined; see `parts.KINDS`.
    """

    file: int
    row: int
    rank: int
    kind: int = 0


@dataclass(frozen=True)
class Lookup:
    """The result of looking up keys: `locations[i]` is only valid where `known[i]`."""

    known: Array
    locations: Array


class KeyIndex:
    """Maps row keys to locations, 33 bytes each. Not thread-safe."""

    def __init__(self) -> None:
        self._keys = np.empty(0, KEY)
        self._locations = np.empty(0, LOCATION)
        self._recent: dict[bytes, Location] = {}

    def __len__(self) -> int:
        self._merge_recent()
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or self._position(key) is not None

    def get(self, key: bytes) -> Location | None:
        """The location of a key."""
        if (recent := self._recent.get(key)) is not None:
            return recent
        position = self._position(key)
        return None if position is None else Location(*self._locations[position].item())

    def put(self, key: bytes, location: Location) -> None:
        """Set the location of a key, unless the known one has a higher rank."""
        known = self.get(key)
        if known is None or known.rank <= location.rank:
            self._recent[key] = location
        self._limit_recent()

    def update(self, entries: Mapping[bytes, Location]) -> None:
        """Set the locations of some keys as `put` does, with one look-up for all of them."""
        found = self.find(np.frombuffer(b"".join(entries), KEY))
        known, ranks = found.known.tolist(), found.locations["rank"].tolist()
        for (key, location), is_known, rank in zip(entries.items(), known, ranks, strict=True):
            if not is_known or rank <= location.rank:
                self._recent[key] = location
        self._limit_recent()

    def extend(self, entries: Iterable[tuple[Array, Array]]) -> None:
        """Put many keys at once, as arrays of `KEY` and `LOCATION`; keys may repeat."""
        self._merge_recent()
        piece: list[tuple[Array, Array]] = []
        count = 0
        for entry in entries:
            piece.append(entry)
            count += len(entry[0])
            if count >= max(_MIN_EXTENSION, len(self._keys) * _EXTENSION_SHARE):
                self._merge(*_highest(piece))
                count = 0
        if count:
            self._merge(*_highest(piece))

    def move(self, keys: Array, file: int) -> None:
        """Say that known rows are now in this part, in this order."""
        self._merge_recent()
        positions = np.searchsorted(self._keys, keys)
        self._locations["file"][positions] = file
        self._locations["row"][positions] = np.arange(len(keys))

    def find(self, keys: Array) -> Lookup:
        """Look up many keys at once."""
        if len(self._keys):
            positions = np.searchsorted(self._keys, keys)
            positions[positions == len(self._keys)] = 0
            known, locations = self._keys[positions] == keys, self._locations[positions]
        else:
            known, locations = np.zeros(len(keys), bool), np.zeros(len(keys), LOCATION)
        if self._recent:
            packed = keys.tobytes()
            for number in range(len(keys)):
                recent = self._recent.get(packed[16 * number : 16 * number + 16])
                if recent is not None:
                    known[number], locations[number] = True, recent
        return Lookup(known, locations)

    def forget(self, files: Iterable[int]) -> None:
        """Remove all keys whose row is in one of these parts."""
        self._merge_recent()
        remaining = ~np.isin(self._locations["file"], list(files))
        self._keys, self._locations = self._keys[remaining], self._locations[remaining]

    def entries(self) -> tuple[Array, Array]:
        """All keys, sorted, and their locations."""
        self._merge_recent()
        return self._keys, self._locations

    def _position(self, key: bytes) -> int | None:
        if not len(self._keys):
            return None
        position = int(self._keys.searchsorted(np.array(key, KEY)))
        found = self._keys[position : position + 1].tobytes() == key
        return position if found else None

    def _limit_recent(self) -> None:
        if len(self._recent) >= max(_MAX_RECENT, len(self._keys) * _RECENT_SHARE):
            self._merge_recent()

    def _merge_recent(self) -> None:
        if not self._recent:
            return
        keys = np.frombuffer(b"".join(self._recent), KEY)
        order = np.argsort(keys)
        locations = np.array(list(self._recent.values()), LOCATION)
        self._recent = {}
        self._merge(keys[order], locations[order])

    def _merge(self, keys: Array, locations: Array) -> None:
        """Merge sorted keys, none twice, without sorting all others again."""
        positions = np.searchsorted(self._keys, keys)
        known = positions < len(self._keys)
        known[known] = self._keys[positions[known]] == keys[known]
        old, new = positions[known], locations[known]
        counts = self._locations["rank"][old] <= new["rank"]
        self._locations[old[counts]] = new[counts]
        # One after the other: only one of them is in memory twice.
        self._keys = np.insert(self._keys, positions[~known], keys[~known])
        self._locations = np.insert(self._locations, positions[~known], locations[~known])


def _highest(entries: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Take keys and locations out of a list: sorted, and of each key that with the highest rank."""
    keys = np.concatenate([keys for keys, _ in entries])
    locations = np.concatenate([locations for _, locations in entries])
    entries.clear()
    order = np.lexsort((locations["rank"], keys))
    keys = keys[order]
    last = np.ones(len(keys), bool)
    last[:-1] = keys[:-1] != keys[1:]
    return keys[last], locations[order[last]]


def count_duplicates(keys: Sequence[str]) -> int:
    """How many row keys are like an earlier one."""
    return len(keys) - len(np.unique(pack_keys(keys)))


def pack_keys(keys: Sequence[str]) -> Array:
    """Convert row keys to an array of `KEY`.

    Raises:
        ValueError: one of them is not a row key.
    """
    packed = np.empty(len(keys), KEY)
    start = 0
    for piece in packed_pieces(keys):
        packed[start : start + len(piece)] = piece
        start += len(piece)
    return packed


def packed_pieces(keys: Sequence[str]) -> Iterator[Array]:
    """Row keys as arrays of `KEY`, each small, to look them up in bounded memory.

    Raises:
        ValueError: while iterating, if one of them is not a row key.
    """
    for start in range(0, len(keys), _KEYS_PER_PIECE):
        piece = keys[start : start + _KEYS_PER_PIECE]
        packed = np.frombuffer(bytes.fromhex("".join(piece)), KEY)
        if len(packed) != len(piece):
            raise ValueError("not row keys")
        yield packed
