"""Which interpreter runs vLLM, and whether there is a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server.vllm_python import VLLMPython, find_vllm_python, has_gpu


def test_a_named_interpreter_takes_precedence(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", "/no/such/python")
    assert find_vllm_python(stand_in) == VLLMPython(stand_in, cpu_only=True)


def test_an_interpreter_from_the_environment(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", str(stand_in))
    assert find_vllm_python().path == stand_in


def test_an_interpreter_in_the_working_directory(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stand_in.rename(python)
    monkeypatch.chdir(tmp_path)
    assert find_vllm_python().path == python


def test_a_folder_named_vllm_is_not_mistaken_for_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match="has no vLLM"):
        find_vllm_python(sys.executable)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda _path: None, "not a working Python", id="missing"),
        pytest.param(lambda path: path.touch(mode=0o755), "not a working Python", id="broken"),
        pytest.param(lambda path: path.symlink_to(sys.executable), "no vLLM", id="without vLLM"),
    ],
)
def test_an_unusable_interpreter_is_rejected_with_advice(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "some-python"
    make(path)
    with pytest.raises(ServerError, match=reason) as rejection:
        find_vllm_python(path)
    assert str(path) in str(rejection.value)
    assert "prefect_imageqa.serving.server.cpu_env" in str(rejection.value)
    assert "\n" not in str(rejection.value)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_a_hidden_gpu_is_no_gpu(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _self: True)
    assert has_gpu()
    monkeypatch.setenv(variable, "")
    assert not has_gpu()
