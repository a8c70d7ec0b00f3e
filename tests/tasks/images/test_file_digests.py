import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect_imageqa.tasks.images import file_digests
from prefect_imageqa.tasks.images.file_digests import (
    FileDigests,
    default_path,
    file_version,
    is_settled,
)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rows_in(path: Path) -> int:
    with sqlite3.connect(path) as db:
        count: int = db.execute("SELECT count(*) FROM digests").fetchone()[0]
    return count


def test_digests_are_found_by_path_and_version(tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "new" / "digests.sqlite")
    digests.add("/a.png", "1", digest_of("a"))
    digests.add("/\udcff.png", "1", digest_of("b"))
    for _ in range(2):  # before and after it is written
        assert digests.get("/a.png", "1") == digest_of("a")
        assert digests.get("/\udcff.png", "1") == digest_of("b")
        assert digests.get("/a.png", "2") is None
        assert digests.get("/c.png", "1") is None
        digests.close()
    digests.add("/a.png", "2", digest_of("c"))
    assert digests.get("/a.png", "1") is None
    digests.close()
    reopened = FileDigests(tmp_path / "new" / "digests.sqlite")
    assert reopened.get("/a.png", "2") == digest_of("c")
    reopened.close()


def test_the_default_database_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_path() == Path("/cache/prefect-imageqa/digests.sqlite")
    for unset in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_path() == Path("/home/me/.cache/prefect-imageqa/digests.sqlite")


def test_the_database_is_created_only_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    FileDigests().close()
    assert list(tmp_path.iterdir()) == []
    digests = FileDigests()
    digests.add("/a.png", "1", digest_of("a"))
    digests.close()
    assert rows_in(default_path()) == 1
    assert default_path().parent.stat().st_mode & 0o077 == 0


def test_a_digest_is_known_in_the_run_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_GROUP_FILES", 1)  # so that adding it writes it
    digests = FileDigests(tmp_path / "digests.sqlite")
    digests.preload(["a.png"])
    digests.add("a.png", "v1", "d1")
    assert digests.get("a.png", "v1") == "d1"
    digests.close()


def test_digests_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "digests.sqlite"
    digests = FileDigests(path)
    digests.get("/", "")
    for number in range(1200):
        digests.add(f"/{number}.png", "1", digest_of(str(number)))
    assert rows_in(path) == 1000
    monkeypatch.setattr(file_digests, "_GROUP_SECONDS", 0.0)
    digests.add("/last.png", "1", digest_of("last"))
    assert rows_in(path) == 1201
    digests.close()


def _grown(path: Path) -> None:
    path.write_bytes(b"longer")


def _touched(path: Path) -> None:
    os.utime(path, (0, 0))


def _rewritten_with_its_old_mtime(path: Path) -> None:
    info = path.stat()
    path.write_bytes(b"b")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _replaced_with_its_old_mtime(path: Path) -> None:
    info = path.stat()
    path.with_name("new").write_bytes(b"b")
    os.utime(path.with_name("new"), ns=(info.st_atime_ns, info.st_mtime_ns))
    path.with_name("new").rename(path)


@pytest.mark.parametrize(
    "change", [_grown, _touched, _rewritten_with_its_old_mtime, _replaced_with_its_old_mtime]
)
def test_a_changed_file_has_another_version(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    before = file_version(path.stat())
    assert file_version(path.stat()) == before
    time.sleep(0.02)  # the clock of ctime may tick only every 10 ms
    change(path)
    assert file_version(path.stat()) != before


def test_a_file_is_settled_two_seconds_after_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    info = path.stat()
    assert not is_settled(info, info.st_mtime)
    assert not is_settled(info, info.st_mtime + 1.9)
    assert is_settled(info, info.st_mtime + 2.1)
    os.utime(path, (0, 0))  # its ctime still shows that it is new
    assert not is_settled(path.stat(), info.st_ctime + 1.9)


def test_known_digests_are_found_and_added_while_another_thread_uses_the_database(
    tmp_path: Path,
) -> None:
    digests = FileDigests(tmp_path / "digests.sqlite")
    digests.add("/a.png", "1", digest_of("a"))
    digests.preload(["/b.png"])
    with ThreadPoolExecutor(1) as pool, digests._lock:
        pool.submit(digests.add, "/b.png", "1", digest_of("b")).result(timeout=60)
        for name in "ab":
            found = pool.submit(digests.get, f"/{name}.png", "1").result(timeout=60)
            assert found == digest_of(name)
    digests.close()
    assert rows_in(tmp_path / "digests.sqlite") == 2


def test_threads_can_share_the_digests(tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "digests.sqlite")

    def use(number: int) -> str | None:
        digests.add(f"/{number}.png", "1", digest_of(str(number)))
        return digests.get(f"/{number}.png", "1")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(use, range(2000))) == [digest_of(str(n)) for n in range(2000)]
    digests.close()
    assert rows_in(tmp_path / "digests.sqlite") == 2000


_PROCESS = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("file_digests", sys.argv[1])
file_digests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(file_digests)
digests = file_digests.FileDigests(Path(sys.argv[2]))
digests.get("/", "")
for number in range(3000):
    digests.add(f"/{sys.argv[3]}/{number}.png", "1", "digest")
digests.close()
"""
"""Imports the module only, because importing the package takes longer than the test."""


def test_processes_can_share_the_digests(tmp_path: Path) -> None:
    path = tmp_path / "digests.sqlite"
    command = [sys.executable, "-c", _PROCESS, file_digests.__file__, str(path)]
    processes = [
        subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "abcd"
    ]
    assert [process.communicate(timeout=240)[1] for process in processes] == [""] * 4
    assert rows_in(path) == 12_000


def _corrupt(folder: Path) -> Path:
    (folder / "digests.sqlite").write_bytes(b"this is not a database " * 100)
    return folder / "digests.sqlite"


def _foreign(folder: Path) -> Path:
    with sqlite3.connect(folder / "digests.sqlite") as db:
        db.execute("CREATE TABLE digests (other TEXT)")
    return folder / "digests.sqlite"


def _blocked(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "digests.sqlite"


def _folder(folder: Path) -> Path:
    (folder / "digests.sqlite").mkdir()
    return folder / "digests.sqlite"


def _device(folder: Path) -> Path:
    (folder / "digests.sqlite").symlink_to("/dev/full")
    return folder / "digests.sqlite"


@pytest.mark.parametrize("broken", [_corrupt, _foreign, _blocked, _folder, _device])
def test_an_unusable_database_is_logged_once(
    broken: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken(tmp_path)
    digests = FileDigests(path)
    with caplog.at_level(logging.WARNING):
        assert digests.get("/a.png", "1") is None
        for number in range(1100):
            digests.add(f"/{number}.png", "1", digest_of("a"))
        assert digests.get("/1.png", "1") is None
        digests.close()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_missing_home_folder_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    digests = FileDigests()
    assert digests.get("/a.png", "1") is None
    digests.add("/a.png", "1", digest_of("a"))
    digests.close()
    assert len(caplog.records) == 1


def test_a_database_that_fails_later_is_not_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "digests.sqlite"
    digests = FileDigests(path)
    digests.add("/a.png", "1", digest_of("a"))
    assert digests.get("/a.png", "1")
    assert digests.get("/b.png", "1") is None
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE digests")
    digests.close()
    assert len(caplog.records) == 1
