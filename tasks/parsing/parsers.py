"""What a parser is, and what it makes of a reply."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..records import Asked


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser makes of a reply.

    Attributes:
        value: plain JSON.
        lost: how many QA pairs the reply seems to have that are not in the value.
        reason: why one is not, as the end of a sentence that starts with "The reply ...".
    """

    value: Any
    lost: int = 0
    reason: str = ""


Parser = Callable[[str, Asked], Parsed]
"""Parses the raw text of a completion, given also what was asked.

An exception affects only that row.
"""


_MAX_REMEMBERED = 2048
_MAX_REMEMBERED_LENGTH = 8192
"""Replies, and characters of each: 32 MB at most for most scripts."""


class RecentReplies:
    """What the parser made of the replies that were only checked so far. Thread-safe.

    A reply is parsed to see whether it is usable, and again when its batch is complete: the second
    time takes what the first one found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parsed: dict[tuple[str, Asked], Parsed] = {}

    def parse(self, parser: Parser, text: str, asked: Asked) -> Parsed:
        """What the parser makes of a reply; remembered until asked for once more.

        Raises:
            Exception: as the parser does.
        """
        key = (text, asked)
        with self._lock:
            known = self._parsed.pop(key, None)
        if known is not None:
            return known
        parsed = parser(text, asked)
        if len(text) <= _MAX_REMEMBERED_LENGTH:
            with self._lock:
                self._parsed[key] = parsed
                if len(self._parsed) > _MAX_REMEMBERED:
                    del self._parsed[next(iter(self._parsed))]
        return parsed
