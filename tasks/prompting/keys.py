"""Row keys and batch keys: only this module knows what a key contains.

A row key is the first 128 bits, in hex, of the SHA-256 of two concatenated digests:

- of what all rows of a run share (`RequestSpec`), with `KEY_VERSION`;
- of what is specific to the row: the identity of each of its images, in order, its rendered
  messages, the name and version of its style, the form of its reply, and which sample it is.

Both are digests of canonical JSON: names sorted, no spaces. So a key is the same in every process,
on every version of Python and for every order of columns. A column that does not affect the
messages does not affect the key.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import orjson

from ..images.prepare import ImageSettings
from ..records import Row
from .style import Rendered

KEY_VERSION = 5
"""Bumped when the content of a key changes: then every row counts as new."""

KEY_LENGTH = 32
"""Hex digits of a key: 128 bits, so no collision is expected below 10^16 rows."""

_KEY_BYTES = KEY_LENGTH // 2


@dataclass(frozen=True)
class RequestSpec:
    """Everything common to all rows of a run that decides their answers.

    Server URLs, credentials, batch size and concurrency are excluded deliberately: moving a server
    or appending to the dataset must not make the model answer again. So is the parser, which reads
    the stored completions.

    Attributes:
        model: the served model name, never a path.
        model_revision: digest of the checkpoint if it is known, else empty.
        sampling: request options: temperature, max_tokens, ...
        images: image preparation settings.
    """

    model: str
    model_revision: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(
        default_factory=lambda: ImageSettings().model_dump(mode="json")
    )

    @cached_property
    def digest(self) -> bytes:
        """Digest over all fields."""
        return canonical_digest(
            {
                "version": KEY_VERSION,
                "model": self.model,
                "model_revision": self.model_revision,
                "sampling": dict(self.sampling),
                "images": dict(self.images),
            }
        )


def row_key(image_ids: Sequence[str], rendered: Rendered, sample: int, spec: RequestSpec) -> str:
    """Identify a row by everything that decides its answer.

    Args:
        image_ids: the identity of each of its images.
        rendered: its messages, its options, and what it asks for, which its pairs have.
        sample: number among the rows that ask the same about the same record.
        spec: what all rows of the run share.
    """
    asked = rendered.asked
    content: dict[str, Any] = {
        "images": image_ids,
        "messages": rendered.messages,
        "asked": {
            "question": asked.question,
            "style": asked.style,
            "form": asked.form,
            "type": asked.type,
            "language": asked.language,
        },
    }
    if rendered.options:
        content["options"] = dict(rendered.options)
    if sample:
        content["sample"] = sample
    return hashlib.sha256(spec.digest + canonical_digest(content)).hexdigest()[:KEY_LENGTH]


def problem_key(row: Row) -> str:
    """Identify a row that cannot be sent to the model by its location and content."""
    return canonical_digest({"where": row.where, "record": row.record}).hex()[:KEY_LENGTH]


def batch_key(keys: Iterable[str], attempts: Iterable[int], cache_buster: str = "") -> str:
    """Identify a batch by its rows and the number of earlier attempts at each.

    The attempt numbers make failed rows miss the cache, so that they are sent to the model again.
    A cache buster does the same for rows that did not fail.
    """
    content: dict[str, Any] = {"rows": list(keys), "attempts": list(attempts)}
    if cache_buster:
        content["cache_buster"] = cache_buster
    return canonical_digest(content).hex()[:KEY_LENGTH]


def configuration_key(settings: Mapping[str, Any]) -> str:
    """Identify the settings of a run, for whatever is stored per configuration."""
    return canonical_digest(dict(settings)).hex()[:KEY_LENGTH]


class KeyList(Sequence[str]):
    """Row keys in dataset order, 16 bytes each: a million rows take 16 MB."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def append(self, key: str) -> None:
        """Append the key of the next row."""
        self._packed += bytes.fromhex(key)

    def __len__(self) -> int:
        return len(self._packed) // _KEY_BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found, packed = range(len(self))[index], self._packed
        if isinstance(found, int):
            return packed[found * _KEY_BYTES : (found + 1) * _KEY_BYTES].hex()
        return [packed[number * _KEY_BYTES : (number + 1) * _KEY_BYTES].hex() for number in found]


def canonical_digest(value: Any) -> bytes:
    """SHA-256 of the value as canonical JSON: sorted names, no spaces."""
    try:
        text = orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, an integer of more than 64 bits, a name that is no text
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()
    return hashlib.sha256(text).digest()


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value)
