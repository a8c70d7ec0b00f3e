"""Local image files: identified without reading those that are known, and read to send them."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ..records import ImageRef, Kind, RowError
from .decoding_budget import FILES
from .file_digests import FileDigests, file_version, is_settled
from .untrusted_files import read_local, stat_local

SMALL_BYTES = 2 * 2**20
"""Smaller files are read without waiting: those of all threads are 96 MB."""

_SLOW_SECONDS, _SLOW_RATE = 3e-3, 200e6
"""Reading a file takes no longer, and bytes a second, unless the disk is busy or far."""

_SLOW_READS = 16
"""So many in a row are no coincidence, such as a thread that had to wait for the GIL."""


class LocalImages:
    """Identifies and reads local files. Thread-safe.

    What is sent to the model is what was identified: a file that has changed since is not read.

    Args:
        max_bytes: larger files are not read.
        digests: cache of digests, closed with this. Without it, every file is read to identify it.
        root: the only folder that files may come from, if given.
    """

    def __init__(self, max_bytes: int, digests: FileDigests | None, root: str | None) -> None:
        self._max_bytes = max_bytes
        self._digests = digests
        self._root: str | None = None
        self._slow_reads = 0
        self.confine(root)

    def confine(self, root: str | None) -> None:
        """Read files only from this folder, if one is given."""
        if root and "://" not in root:
            self._root = str(Path(root).expanduser().resolve())

    def is_quick(self, ref: ImageRef) -> bool:
        """Whether reading a file takes so little time that no thread of its own is worth it."""
        is_small = not ref.version or _size(ref.version) <= SMALL_BYTES
        return is_small and self._slow_reads < _SLOW_READS

    def close(self) -> None:
        """Save new digests."""
        if self._digests:
            self._digests.close()

    def preload_digests(self, paths: Sequence[str]) -> None:
        """Look up the digests of files that are about to be identified, all at once."""
        if self._digests:
            self._digests.preload(paths)

    def digest(self, ref: ImageRef) -> str:
        """SHA-256 of a file, in hex.

        Raises:
            RowError: as for `read_local`, or the file is too large.
        """
        path = str(ref.path)
        if self._digests:
            version = ref.version or file_version(stat_local(path))
            known = self._digests.get(path, version)
            if known and _size(version) <= self._max_bytes:
                return known
        now = time.time()
        data, info = self._load(ref, min(SMALL_BYTES, self._max_bytes))
        if data is not None:
            return self._digest_of(ref, data, info, now)
        if info.st_size > self._max_bytes:
            raise too_large(ref, self._max_bytes)
        with FILES.hold(info.st_size):
            data, info = self._load(ref, self._max_bytes)
            if data is None:
                raise too_large(ref, self._max_bytes)
            return self._digest_of(ref, data, info, now)

    def read(self, ref: ImageRef, limit: int) -> bytes | None:
        """The content of a file; None if it has more bytes than the limit.

        Raises:
            RowError: as for `read_local`; or the file has changed since it was found, so that it
                is not what its row was identified by (connection: the next run finds it again).
        """
        data, info = self._load(ref, limit)
        if data is not None and ref.version not in ("", file_version(info)):
            known = self._digests and self._digests.get(str(ref.path), ref.version)
            if known != hashlib.sha256(data).hexdigest():
                raise RowError(Kind.CONNECTION, f"{ref} has changed while the run used it")
        return data

    def size(self, ref: ImageRef) -> int:
        """Bytes of a file.

        Raises:
            RowError: as for `read_local`.
        """
        return stat_local(str(ref.path)).st_size

    def _load(self, ref: ImageRef, limit: int) -> tuple[bytes | None, os.stat_result]:
        """The content, if it is within the limit; and the state of the file before."""
        began = time.perf_counter()
        data, info = read_local(str(ref.path), limit, self._root)
        is_slow = time.perf_counter() - began > _SLOW_SECONDS + info.st_size / _SLOW_RATE
        self._slow_reads = self._slow_reads + 1 if is_slow else 0
        return data, info

    def _digest_of(self, ref: ImageRef, data: bytes, info: os.stat_result, now: float) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if self._digests and is_settled(info, now):
            self._digests.add(str(ref.path), file_version(info), digest)
        return digest


def _size(version: str) -> int:
    return int(version.partition(" ")[0])


def too_large(ref: ImageRef, limit: int) -> RowError:
    """The error for an image of more bytes than the limit."""
    return RowError(Kind.IMAGE_TOO_LARGE, f"{ref} is larger than the limit of {limit / 1e6:g} MB")
