"""Row keys and batch keys: only this module knows what a key contains.

A row key is the first 128 bits, in hex, of the SHA-256 of two digests, one after the other:

- of what all rows of a run share (`RequestSpec`), with `KEY_VERSION`;
- of the row's own: the identity of each of its images, in order, and its rendered messages.

Both are digests of canonical JSON: names sorted, no spaces, ASCII. So a key is the same in every
process, on every version of Python and for every order of columns. A column that does not reach
the messages does not matter.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from ...serving.types import Message
from ..images.preparing import ImageSettings
from ..records import Row

KEY_VERSION = 2
"""Raised when the content of a key changes: then every row counts as new."""

KEY_LENGTH = 32
"""Hex digits of a key: 128 bits, no collision to be expected below 10^16 rows."""

_KEY_BYTES = KEY_LENGTH // 2


@dataclass(frozen=True)
class RequestSpec:
    """What decides the answer to every row of a run alike.

    Server URLs, credentials, batch size and concurrency are left out on purpose: moving a server
    or appending to the dataset must not make the model answer again. So is the parser: it reads
    what is stored.

    Attributes:
        model: the served model name, never a path.
        model_revision: digest of the checkpoint where it is known, else empty.
        sampling: request options: temperature, max_tokens, ...
        images: image preparation settings.
        prompt: name of the prompt style.
    """

    model: str
    model_revision: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(
        default_factory=lambda: ImageSettings().model_dump(mode="json")
    )
    prompt: str = "chat"

    @cached_property
    def digest(self) -> bytes:
        """Digest over all fields."""
        return _digest(
            {
                "version": KEY_VERSION,
                "model": self.model,
                "model_revision": self.model_revision,
                "sampling": dict(self.sampling),
                "images": dict(self.images),
                "prompt": self.prompt,
            }
        )


def row_key(image_ids: Sequence[str], messages: Sequence[Message], spec: RequestSpec) -> str:
    """Name a row by all that decides its answer: what its images are, its messages, the spec."""
    own = _digest({"images": list(image_ids), "messages": list(messages)})
    return hashlib.sha256(spec.digest + own).hexdigest()[:KEY_LENGTH]


def problem_key(row: Row) -> str:
    """Name a row that cannot be asked by its place and what it holds."""
    return _digest({"where": row.where, "record": row.record}).hex()[:KEY_LENGTH]


def batch_key(keys: Iterable[str], attempts: Iterable[int], cache_buster: str = "") -> str:
    """Name a batch by its rows and how often each was asked before.

    The attempt number makes a row that failed be asked again, and not found done. So does a cache
    buster, for rows that did not fail.
    """
    named: dict[str, Any] = {"rows": list(keys), "attempts": list(attempts)}
    if cache_buster:
        named["cache_buster"] = cache_buster
    return _digest(named).hex()[:KEY_LENGTH]


def configuration_key(settings: Mapping[str, Any]) -> str:
    """Name what a run was told, for what is kept per configuration."""
    return _digest(dict(settings)).hex()[:KEY_LENGTH]


class KeyList(Sequence[str]):
    """Row keys in dataset order, 16 bytes each: a million rows take 16 MB."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def append(self, key: str) -> None:
        """Add the next row's key."""
        self._packed += bytes.fromhex(key)

    def __len__(self) -> int:
        return len(self._packed) // _KEY_BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start = range(len(self))[index] * _KEY_BYTES
        return self._packed[start : start + _KEY_BYTES].hex()


def _digest(value: Any) -> bytes:
    """SHA-256 of the value as canonical JSON: sorted names, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode("ascii")).digest()


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value)
