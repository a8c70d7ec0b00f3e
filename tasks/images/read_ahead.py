"""Files that were read to identify them, kept until they are prepared: each is read once."""

import threading
import time
from collections import OrderedDict

MAX_BYTES = 64 << 20
"""Of all files that are kept."""

_MAX_SECONDS = 30.0
"""An older file may make room: its row is not asked, or the server is slow enough to read again."""


class ReadAhead:
    """Keeps the content of files by their path and version. Thread-safe.

    When it is full, a new file is not kept: those that were read first are needed first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    def keep(self, path: str, version: str, data: bytes) -> None:
        """Keep the content of a file, if there is room."""
        now = time.monotonic()
        with self._lock:
            if self._bytes + len(data) > MAX_BYTES:
                self._drop_old(now - _MAX_SECONDS)
            if self._bytes + len(data) <= MAX_BYTES:
                self._remove((path, version))
                self._files[path, version] = data, now
                self._bytes += len(data)

    def take(self, path: str, version: str, limit: int) -> bytes | None:
        """The content of a file, which is not kept any longer; None if it is not kept.

        Args:
            path: the file.
            version: its version, see `file_version`.
            limit: bytes; a larger file is left where it is.
        """
        with self._lock:
            kept = self._files.get((path, version))
            if kept is None or len(kept[0]) > limit:
                return None
            self._remove((path, version))
            return kept[0]

    def _remove(self, key: tuple[str, str]) -> None:
        if kept := self._files.pop(key, None):
            self._bytes -= len(kept[0])

    def _drop_old(self, before: float) -> None:
        while self._files and next(iter(self._files.values()))[1] < before:
            self._remove(next(iter(self._files)))
