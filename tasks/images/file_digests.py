"""Digests of local files, cached between runs so that unchanged files are not read again."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tenacity

T = TypeVar("T")

SETTLE_SECONDS = 2.0
"""A file must be unmodified for this long: some file systems have coarse timestamps."""

_GROUP_FILES = 500
_GROUP_SECONDS = 5.0
"""New digests are written in groups: a commit costs more than hashing a small file."""

_MAX_PRELOADED_FILES = 65_536
"""Looked-up files held in memory; they are needed soon after the look-up."""

_NOT_LOOKED_UP = ("", "")

_FILES_PER_QUERY = 500
"""SQLite allows at least 999 parameters in a query."""

_BUSY_SECONDS = 10.0
"""How long to wait for other processes' writes."""

_TABLE = """
CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, version TEXT, sha256 TEXT) WITHOUT ROWID
"""

_LOGGER = logging.getLogger(__name__)


def file_version(info: os.stat_result) -> str:
    """A string that changes when the file does.

    Anyone can set mtime back, but not ctime; and a file that replaces another has another inode.
    """
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"


def is_settled(info: os.stat_result, now: float) -> bool:
    """Whether any change of the file after `now` (seconds since the epoch) would be noticed."""
    return max(info.st_mtime, info.st_ctime) < now - SETTLE_SECONDS


def default_path() -> Path:
    """The default database: `prefect-imageqa/digests.sqlite` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    home = Path(cache) if cache.startswith("/") else Path("~/.cache").expanduser()
    return home / "prefect-imageqa" / "digests.sqlite"


class FileDigests:
    """SHA-256 digests by path and version of the file. Safe across threads and processes.

    It is only a cache: if its database cannot be used, it logs one warning and caches nothing.

    Args:
        path: the database, on a local disk; by default in the user's cache folder. It and its
            folder are created when first needed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._usable = True
        self._lock = threading.Lock()
        self._new: dict[bytes, tuple[str, str]] = {}
        self._preloaded: dict[bytes, tuple[str, str] | None] = {}
        self._written = time.monotonic()

    def preload(self, paths: Sequence[str]) -> None:
        """Look up many files at once, so that `get` needs no query for each of them.

        A query blocks other threads here and itself waits for the GIL, so one query should cover
        many files.
        """
        names = [os.fsencode(path) for path in paths]
        with self._lock:
            found = dict(self._guarded(lambda db: _select(db, names)) or ())
            if len(self._preloaded) > _MAX_PRELOADED_FILES:
                self._preloaded.clear()
            self._preloaded.update((name, found.get(name)) for name in names)

    # Looking up and adding a digest take no lock: a thread that waits for one costs more than that.

    def get(self, path: str, version: str) -> str | None:
        """The file's digest in hex, if this version of it is known (see `file_version`)."""
        name = os.fsencode(path)
        known = self._new.get(name) or self._preloaded.get(name, _NOT_LOOKED_UP)
        if known is _NOT_LOOKED_UP:
            self.preload([path])
            known = self._preloaded.get(name)
        return known[1] if known and known[0] == version else None

    def add(self, path: str, version: str, digest: str) -> None:
        """Store a digest; it is written to the database soon, or by `close`."""
        if not self._usable:
            return
        self._new[os.fsencode(path)] = version, digest
        due = time.monotonic() - self._written > _GROUP_SECONDS
        if (due or len(self._new) >= _GROUP_FILES) and self._lock.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Write new digests and close the database."""
        with self._lock:
            self._write()
            if self._connection:
                self._connection.close()
            self._connection = None

    def _write(self) -> None:
        new = self._new.copy()  # others add meanwhile
        if new:
            self._guarded(lambda db: _insert(db, [(name, *known) for name, known in new.items()]))
            self._preloaded.update(new)
        for name in new:
            self._new.pop(name, None)
        self._written = time.monotonic()

    def _guarded(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        """Use the database; after the first error it is not used again."""
        if not self._usable:
            return None
        try:
            self._connection = self._connection or self._open()
            return use(self._connection)
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: no home folder
            self._usable = False
            self._new.clear()
            _LOGGER.warning(
                "image digests cannot be cached, so every run reads every image file (%s: %s); "
                "set XDG_CACHE_HOME to a writable folder, or delete the file if it is corrupted",
                self._path or "cache folder",
                error,
            )
            return None

    def _open(self) -> sqlite3.Connection:
        self._path = self._path or default_path()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        _prepare(connection)
        return connection


# SQLite's busy timeout does not cover processes that create the same database at the same time.
@tenacity.retry(
    retry=tenacity.retry_if_exception_type(sqlite3.OperationalError),
    stop=tenacity.stop_after_attempt(10),
    wait=tenacity.wait_random(max=0.1),
    reraise=True,
)
def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(_TABLE)


def _select(db: sqlite3.Connection, names: list[bytes]) -> list[tuple[bytes, tuple[str, str]]]:
    found: list[tuple[bytes, tuple[str, str]]] = []
    for start in range(0, len(names), _FILES_PER_QUERY):
        some = names[start : start + _FILES_PER_QUERY]
        marks = ",".join("?" * len(some))
        query = f"SELECT path, version, sha256 FROM digests WHERE path IN ({marks})"  # noqa: S608
        rows = db.execute(query, some)
        found += [(path, (version, digest)) for path, version, digest in rows]
    return found


def _insert(db: sqlite3.Connection, rows: list[tuple[bytes, str, str]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
        db.execute("COMMIT")
    except sqlite3.Error:
        db.rollback()
        raise
