"""The replies to a batch as plain JSON: cached, and parsed again whenever the parser changes."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from ..errors import RecordCorruptedError
from ..prompting.keys import KEY_LENGTH, batch_key
from ..records import Asked, Batch, Reply

_LIMITS = {"attempt": 1 << 30, "attempts": 1 << 30, "status": 1 << 30, "time": 1 << 38}
_LIMIT = 1 << 48
"""Exclusive upper bounds of all numbers, so that they fit the columns of a part."""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The outcome of one row, with everything that parsing needs.

    Attributes:
        key: the row key.
        attempt: how many times the row was quarantined before.
        row: position in the dataset at the time.
        where: human-readable location, such as "data.jsonl:17".
        reply: the completion, or why there is none.
        asked: what the row was asked, which parsers need.
        unusable: text of the unusable reply that this one, to a corrective request, replaced; None
            if the row was not asked again, or in vain.
    """

    key: str
    attempt: int
    row: int
    where: str
    reply: Reply
    asked: Asked = Asked()  # noqa: RUF009 - frozen
    unusable: str | None = None


@dataclass(frozen=True, slots=True)
class Completions:
    """The replies to a batch, in the order of its rows; stored as JSON with these fields.

    Attributes:
        replies: one per row.
        time: when the last one was received, in seconds since 1970 (UTC).
        cache_buster: part of the batch key in addition to the rows.
        format: bumped when the stored fields change: replies of other versions are regenerated.
    """

    replies: list[StoredReply]
    time: float
    cache_buster: str = ""
    format: Literal[4] = 4

    @classmethod
    def from_batch(cls, batch: Batch) -> Self:
        """The replies to a batch in which every row has one."""
        replies = [
            StoredReply(
                key=prompt.key,
                attempt=attempt,
                row=prompt.row,
                where=prompt.where,
                reply=batch.replies[prompt.key],
                asked=prompt.asked,
                unusable=batch.corrected.get(prompt.key),
            )
            for prompt, attempt in zip(batch.prompts, batch.attempts, strict=True)
        ]
        return cls(replies, time.time(), batch.cache_buster)

    @classmethod
    def load(cls, stored: "Completions | Mapping[str, Any]") -> "Completions":
        """Restore what was stored; completions of this process need no check.

        Raises:
            RecordCorruptedError: it is something else.
        """
        if isinstance(stored, Completions):
            return stored
        try:
            loaded = _STORED.validate_python(stored)
            # The round trip rejects unknown fields and values that validation merely coerced.
            if _STORED.dump_python(loaded) != stored or not _is_plausible(stored):
                raise ValueError
            if any(len(bytes.fromhex(reply.key)) * 2 != KEY_LENGTH for reply in loaded.replies):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            reason = f"stored replies are corrupted ({type(error).__name__})"
            raise RecordCorruptedError(reason) from None
        return loaded

    def encodable(self) -> "Completions":
        """The same with `?` for each lone surrogate, as a file name may have: UTF-8 has none."""
        text = json.dumps(_STORED.dump_python(self), ensure_ascii=False)
        return _STORED.validate_json(text.encode("utf-8", "replace"))

    @property
    def key(self) -> str:
        """The key of the batch that these replies belong to."""
        keys = [reply.key for reply in self.replies]
        return batch_key(keys, [reply.attempt for reply in self.replies], self.cache_buster)


_STORED = TypeAdapter(Completions)


def _is_plausible(stored: Mapping[str, Any]) -> bool:
    """Whether all numbers are within their limits."""
    numbers = {name: value for name, value in stored.items() if isinstance(value, int | float)}
    inner = [value for value in stored.values() if isinstance(value, Mapping)]
    inner += stored.get("replies", [])
    return all(0 <= value < _LIMITS.get(name, _LIMIT) for name, value in numbers.items()) and all(
        map(_is_plausible, inner)
    )
