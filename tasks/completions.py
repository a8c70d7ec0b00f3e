"""The replies to a batch as plain JSON: what is cached, and parsed again when a parser changes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from ..serving.types import Completion
from .caching import KEY_LENGTH, batch_key
from .errors import RecordDamagedError
from .records import Batch, Problem, Reply

_COMPLETION = TypeAdapter(Completion)
_PROBLEM = TypeAdapter(Problem)

FORMAT_VERSION = 1
"""Raised when stored replies are shaped differently; those of another version are asked again."""

_SMALL, _LARGE = 1 << 30, 1 << 48
"""Limits of what is counted: the columns of a part must hold it."""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """What came of asking one row, with all that parsing needs.

    Attributes:
        key: the row key.
        attempt: how many times the row was quarantined before.
        row: position in the dataset when it was asked.
        where: the place a person can find it.
        reply: the completion, or why there is none.
    """

    key: str
    attempt: int
    row: int
    where: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Completions:
    """The replies to a batch, in the order of its rows.

    Attributes:
        replies: one a row.
        time: when they were complete, in seconds since 1970 (UTC).
        salt: what the batch key was made with besides the rows.
    """

    replies: Sequence[StoredReply]
    time: float
    salt: str = ""

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """The replies to a batch that has one for each row."""
        replies = [
            StoredReply(prompt.key, attempt, prompt.row, prompt.where, batch.replies[prompt.key])
            for prompt, attempt in zip(batch.prompts, batch.attempts, strict=True)
        ]
        return cls(replies, time.time(), batch.salt)

    def dump(self) -> dict[str, Any]:
        """Plain JSON values, as they are stored."""
        return {
            "format": FORMAT_VERSION,
            "time": self.time,
            "salt": self.salt,
            "rows": [_dump_reply(reply) for reply in self.replies],
        }

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `dump` gave.

        Raises:
            RecordDamagedError: it is something else.
        """
        try:
            if stored["format"] != FORMAT_VERSION:
                raise RecordDamagedError(f"format {stored['format']!r} of stored replies")
            replies = [_load_reply(row) for row in stored["rows"]]
            time = float(stored["time"])
            _check_numbers(_LARGE, time * 1000)
            return cls(replies, time, str(stored["salt"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"stored replies are damaged ({type(error).__name__})"
            raise RecordDamagedError(reason) from None

    @property
    def key(self) -> str:
        """The key of the batch they are of."""
        keys = [reply.key for reply in self.replies]
        return batch_key(keys, [reply.attempt for reply in self.replies], self.salt)


def _dump_reply(stored: StoredReply) -> dict[str, Any]:
    row = {"key": stored.key, "attempt": stored.attempt, "row": stored.row, "where": stored.where}
    kind = "completion" if isinstance(stored.reply, Completion) else "problem"
    return {**row, kind: asdict(stored.reply)}


def _load_reply(row: Mapping[str, Any]) -> StoredReply:
    reply: Reply
    if "completion" in row:
        Completion(**row["completion"])  # nothing else is in it
        reply = _COMPLETION.validate_python(row["completion"])
        _check_numbers(_LARGE, reply.prompt_tokens, reply.completion_tokens, reply.latency)
        _check_numbers(_SMALL, reply.attempts)
    else:
        Problem(**row["problem"])
        reply = _PROBLEM.validate_python(row["problem"])
        _check_numbers(_SMALL, reply.status or 0, reply.attempts)
    key = str(row["key"])
    if len(bytes.fromhex(key)) * 2 != KEY_LENGTH:
        raise ValueError
    attempt, place = int(row["attempt"]), int(row["row"])
    _check_numbers(_SMALL, attempt)
    _check_numbers(_LARGE, place)
    return StoredReply(key, attempt, place, str(row["where"]), reply)


def _check_numbers(limit: int, *numbers: float) -> None:
    if not all(0 <= number < limit for number in numbers):
        raise ValueError
