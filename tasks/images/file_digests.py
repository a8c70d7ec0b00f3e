"""Digests of local files, remembered between runs, so that an unchanged file is not read again."""

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
"""A file must have been left alone this long; file systems with coarse clocks exist."""

_GROUP_FILES = 500
_GROUP_SECONDS = 5.0
"""New digests are written in groups: a commit costs more than hashing a small file."""

_RECALLED_FILES = 65_536
"""Files that are looked up ahead at a time; they are asked for soon after."""

_QUERIED_FILES = 500
"""Files in one query; SQLite takes 999 values at least."""

_BUSY_SECONDS = 10.0
"""How long other processes' writes are waited for."""

_TABLE = """
CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, version TEXT, sha256 TEXT) WITHOUT ROWID
"""

_LOGGER = logging.getLogger(__name__)


def version_of(info: os.stat_result) -> str:
    """What changes when a file does.

    The time of its last change (mtime) can be set back by anyone, that of its inode (ctime) not;
    and a file put in another's place has another inode.
    """
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"


def settled(info: os.stat_result, now: float) -> bool:
    """Whether a change of the file after `now` (seconds since the epoch) would be seen."""
    return max(info.st_mtime, info.st_ctime) < now - SETTLE_SECONDS


def default_path() -> Path:
    """Where digests are kept: `prefect-imageqa/digests.sqlite` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of these folders wants relative paths ignored.
    home = Path(cache) if cache.startswith("/") else Path("~/.cache").expanduser()
    return home / "prefect-imageqa" / "digests.sqlite"


class FileDigests:
    """SHA-256 digests by path and version of the file, for several threads and processes.

    It is a cache: where its database cannot be used, that is said once and nothing is remembered.

    Args:
        path: the database, on a local disk; by default in the user's cache folder. It and its
            folder are made when first needed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._usable = True
        self._lock = threading.Lock()
        self._new: dict[bytes, tuple[str, str]] = {}
        self._recalled: dict[bytes, tuple[str, str] | None] = {}
        self._written = time.monotonic()

    def recall(self, paths: Sequence[str]) -> None:
        """Look up what is known of some files, so that `find` need not ask for each of them.

        Other threads wait for a query, and it for the interpreter; so one query for many files.
        """
        names = [os.fsencode(path) for path in paths]
        with self._lock:
            found = dict(self._guarded(lambda db: _find(db, names)) or ())
            if len(self._recalled) > _RECALLED_FILES:
                self._recalled.clear()
            self._recalled.update((name, found.get(name)) for name in names)

    def find(self, path: str, version: str) -> str | None:
        """The file's digest in hex, if this version of it is known (see `version_of`)."""
        name = os.fsencode(path)
        with self._lock:
            recalled = name in self._recalled
            known = self._new.get(name) or self._recalled.get(name)
        if known is None and not recalled:
            self.recall([path])
            return self.find(path, version)
        return known[1] if known and known[0] == version else None

    def keep(self, path: str, version: str, digest: str) -> None:
        """Remember a digest; it is written soon, or at `close`."""
        with self._lock:
            if not self._usable:
                return
            self._new[os.fsencode(path)] = version, digest
            late = time.monotonic() - self._written > _GROUP_SECONDS
            if late or len(self._new) >= _GROUP_FILES:
                self._write()

    def close(self) -> None:
        """Write what is new."""
        with self._lock:
            self._write()
            if self._connection:
                self._connection.close()
            self._connection = None

    def _write(self) -> None:
        rows = [(name, *known) for name, known in self._new.items()]
        if rows:
            self._guarded(lambda db: _insert(db, rows))
        self._new.clear()
        self._written = time.monotonic()

    def _guarded(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        """Use the database as long as it can be used."""
        if not self._usable:
            return None
        try:
            self._connection = self._connection or self._open()
            return use(self._connection)
        except (sqlite3.Error, OSError, RuntimeError) as error:  # the last: there is no home folder
            self._usable = False
            self._new.clear()
            _LOGGER.warning(
                "digests of image files are not remembered, so every run reads all of them (%s: "
                "%s); set XDG_CACHE_HOME to a folder that can be written, or delete a broken file",
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


# Processes that first open a database together are not made to wait for each other by SQLite.
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


def _find(db: sqlite3.Connection, names: list[bytes]) -> list[tuple[bytes, tuple[str, str]]]:
    found: list[tuple[bytes, tuple[str, str]]] = []
    for start in range(0, len(names), _QUERIED_FILES):
        some = names[start : start + _QUERIED_FILES]
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
