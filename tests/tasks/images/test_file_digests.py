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
from prefect_imageqa.tasks.images.file_digests import FileDigests, default_path, settled, version_of


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rows_in(path: Path) -> int:
    with sqlite3.connect(path) as db:
        count: int = db.execute("SELECT count(*) FROM digests").fetchone()[0]
    return count


def test_what_is_kept_is_found_by_path_and_version(tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "new" / "digests.sqlite")
    digests.keep("/a.png", "1", digest_of("a"))
    digests.keep("/\udcff.png", "1", digest_of("b"))
    for _ in range(2):  # before and after it is written
        assert digests.find("/a.png", "1") == digest_of("a")
        assert digests.find("/\udcff.png", "1") == digest_of("b")
        assert digests.find("/a.png", "2") is None
        assert digests.find("/c.png", "1") is None
        digests.close()
    digests.keep("/a.png", "2", digest_of("c"))
    assert digests.find("/a.png", "1") is None
    digests.close()
    again = FileDigests(tmp_path / "new" / "digests.sqlite")
    assert again.find("/a.png", "2") == digest_of("c")
    again.close()


def test_it_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_path() == Path("/cache/prefect-imageqa/digests.sqlite")
    for unset in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_path() == Path("/home/me/.cache/prefect-imageqa/digests.sqlite")


def test_nothing_is_made_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    FileDigests().close()
    assert list(tmp_path.iterdir()) == []
    digests = FileDigests()
    digests.keep("/a.png", "1", digest_of("a"))
    digests.close()
    assert rows_in(default_path()) == 1
    assert default_path().parent.stat().st_mode & 0o077 == 0


def test_digests_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "digests.sqlite"
    digests = FileDigests(path)
    digests.find("/", "")
    for number in range(1200):
        digests.keep(f"/{number}.png", "1", digest_of(str(number)))
    assert rows_in(path) == 1000
    monkeypatch.setattr(file_digests, "_GROUP_SECONDS", 0.0)
    digests.keep("/last.png", "1", digest_of("last"))
    assert rows_in(path) == 1201
    digests.close()


def _grown(path: Path) -> None:
    path.write_bytes(b"longer")


def _touched(path: Path) -> None:
    os.utime(path, (0, 0))


def _rewritten_under_its_old_time(path: Path) -> None:
    info = path.stat()
    path.write_bytes(b"b")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _replaced_under_its_old_time(path: Path) -> None:
    info = path.stat()
    path.with_name("new").write_bytes(b"b")
    os.utime(path.with_name("new"), ns=(info.st_atime_ns, info.st_mtime_ns))
    path.with_name("new").rename(path)


@pytest.mark.parametrize(
    "change", [_grown, _touched, _rewritten_under_its_old_time, _replaced_under_its_old_time]
)
def test_a_change_shows(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    before = version_of(path.stat())
    assert version_of(path.stat()) == before
    time.sleep(0.02)  # the clock of ctime may tick only every 10 ms
    change(path)
    assert version_of(path.stat()) != before


def test_a_file_settles(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    info = path.stat()
    assert not settled(info, info.st_mtime)
    assert not settled(info, info.st_mtime + 1.9)
    assert settled(info, info.st_mtime + 2.1)
    os.utime(path, (0, 0))  # the time of its inode still says that it is new
    assert not settled(path.stat(), info.st_ctime + 1.9)


def test_threads_share_it(tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "digests.sqlite")

    def use(number: int) -> str | None:
        digests.keep(f"/{number}.png", "1", digest_of(str(number)))
        return digests.find(f"/{number}.png", "1")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(use, range(2000))) == [digest_of(str(n)) for n in range(2000)]
    digests.close()
    assert rows_in(tmp_path / "digests.sqlite") == 2000


_PROCESS = """
import sys
from pathlib import Path
from prefect_imageqa.tasks.images.file_digests import FileDigests
digests = FileDigests(Path(sys.argv[1]))
digests.find("/", "")
for number in range(3000):
    digests.keep(f"/{sys.argv[2]}/{number}.png", "1", "digest")
digests.close()
"""


def test_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "digests.sqlite"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(path), name], stderr=subprocess.PIPE, text=True
        )
        for name in "abcd"
    ]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 4
    assert rows_in(path) == 12_000


def _corrupt(folder: Path) -> Path:
    (folder / "digests.sqlite").write_bytes(b"this is no database at all " * 100)
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
def test_without_a_usable_database_there_is_one_warning(
    broken: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken(tmp_path)
    digests = FileDigests(path)
    with caplog.at_level(logging.WARNING):
        assert digests.find("/a.png", "1") is None
        for number in range(1100):
            digests.keep(f"/{number}.png", "1", digest_of("a"))
        assert digests.find("/1.png", "1") is None
        digests.close()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_without_a_home_folder_there_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    digests = FileDigests()
    assert digests.find("/a.png", "1") is None
    digests.keep("/a.png", "1", digest_of("a"))
    digests.close()
    assert len(caplog.records) == 1


def test_a_database_that_breaks_later_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "digests.sqlite"
    digests = FileDigests(path)
    digests.keep("/a.png", "1", digest_of("a"))
    assert digests.find("/a.png", "1")
    assert digests.find("/b.png", "1") is None
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE digests")
    digests.close()
    assert len(caplog.records) == 1
