"""Build the environment of a CPU server: `python -m prefect_imageqa.serving.server.cpu_env DIR`.

vLLM's pinned dependencies conflict with Prefect's, and its CPU build must not get the CUDA-linked
packages that it requires. Installing a lock file without dependency resolution solves both. The
lock has the hashes of all files: what is installed is what was locked.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from shutil import rmtree

from ..errors import ServerError

_STAMP = "prefect-imageqa-lock.sha256"
_UNFINISHED = "unfinished"
_PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)
_PYTHON = (3, 11)  # of the CPU build of torch that is in the lock
_LIST_VERSIONS = """
import importlib.metadata, json
print(json.dumps([[d.metadata["Name"], d.version] for d in importlib.metadata.distributions()]))
"""


def lock_path() -> Path:
    """The pinned requirements of the CPU server that are shipped with the package."""
    return Path(__file__).parents[2] / "requirements" / "cpu-server.txt"


def build_cpu_env(folder: Path, lock: Path | None = None) -> bool:
    """Make `folder` a virtual environment with exactly the packages of the lock.

    An environment built by this function is replaced if the lock has changed or the build was
    interrupted. Any other folder is left unchanged; if it is an environment that has all packages
    of the lock, it is used. The lock is by default the one shipped with the package.

    Returns:
        False if the environment was up to date.

    Raises:
        ServerError: This Python is not supported, the folder is something else, or pip failed.
    """
    lock = lock or lock_path()
    stamp = folder / _STAMP
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    built_here = stamp.is_file()
    if built_here and stamp.read_text() == digest:
        return False
    if folder.exists() and not built_here and any(folder.iterdir()):
        if _missing_pins(folder, lock):
            raise ServerError(
                f"{folder}: exists and was not built by this command; delete it or choose another "
                "folder"
            )
        stamp.write_text(digest)
        return False
    if sys.version_info[:2] != _PYTHON:
        raise ServerError(
            f"the packages of the CPU server are locked for Python 3.11, this is "
            f"{sys.version.split()[0]}: run this command with Python 3.11"
        )
    _build(folder, lock)
    if missing := _missing_pins(folder, lock):
        raise ServerError(f"{folder}: pip did not install {', '.join(missing[:5])}")
    stamp.write_text(digest)
    return True


def _build(folder: Path, lock: Path) -> None:
    if folder.exists():
        rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _STAMP).write_text(_UNFINISHED)
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    python = str(folder / "bin" / "python")
    done = subprocess.run(  # noqa: S603
        [python, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(lock)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        hint = ""
        if "torch" in tail and "HASHES" in done.stdout:
            hint = (
                " (it needs the CPU build of torch: set PIP_EXTRA_INDEX_URL to an index of these)"
            )
        raise ServerError(
            f"{folder}: pip could not install {lock.name}{hint}; its last lines:\n{tail}"
        )


def _missing_pins(folder: Path, lock: Path) -> list[str]:
    """The pins of the lock that the environment does not satisfy."""
    try:
        listing = subprocess.run(  # noqa: S603
            [folder / "bin" / "python", "-I", "-c", _LIST_VERSIONS],
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ["a working Python"]
    # A local label names the build, not the release: torch 2.13.0+cpu satisfies torch==2.13.0.
    installed = {
        _normalised(name): version.partition("+")[0] for name, version in json.loads(listing)
    }
    return [
        f"{name}=={version}"
        for name, version in locked_versions(lock).items()
        if installed.get(_normalised(name)) != version
    ]


def locked_versions(lock: Path) -> dict[str, str]:
    """Name -> version of each package in a lock file."""
    return dict(_PIN.findall(lock.read_text()))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Build the environment named on the command line and print the result in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m prefect_imageqa.serving.server.cpu_env",
        description="Build an environment that serves models with vLLM on CPU.",
    )
    parser.add_argument("folder", type=Path, help="where to build it, such as .venv-vllm")
    folder = parser.parse_args().folder
    try:
        built = build_cpu_env(folder)
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: {'built' if built else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
