"""The model, the command line and the environment of a vLLM server."""

import os
from pathlib import Path

import pytest
from prefect_imageqa.serving import demo_model
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server.launch import (
    ServerOptions,
    is_exposed,
    local_checkpoint,
    serve_command,
    serve_environment,
)
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.serving.server.vllm_python import VLLMPython

DEMO_MODEL = Path(demo_model.__file__).parent / "checkpoint"


def test_a_hub_name_is_no_local_checkpoint() -> None:
    assert local_checkpoint("HuggingFaceTB/SmolVLM-256M-Instruct") is None


@pytest.mark.parametrize(
    "model",
    [
        "./nowhere",
        "~/nowhere",
        "/no/where",
        "checkpoints/a/b",
        "nowhere",
        "--config/x",
        Path("no/where"),
    ],
)
def test_a_missing_folder_is_rejected(model: str | Path) -> None:
    with pytest.raises(ServerError, match="no such folder"):
        local_checkpoint(model)


def test_a_folder_without_a_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no config\.json"):
        local_checkpoint(tmp_path)


def test_the_command_and_environment_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    python = VLLMPython(Path("/env/bin/python"), cpu_only=True)
    options = ServerOptions(DEMO_MODEL, api_key="secret", extra_args=("--max-num-seqs", "8"))
    command = serve_command(options, python, 8000, "demo")
    environment = serve_environment(options, python)
    assert command[:5] == [
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(DEMO_MODEL)),
    ]
    assert "--enforce-eager" in command
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.3"
    assert command[-2:] == ["--max-num-seqs", "8"]
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert environment["VLLM_API_KEY"] == "secret"
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert "secret" not in " ".join(command) + repr(options)


def test_the_command_and_environment_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.server.launch.has_gpu", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    python = VLLMPython(Path("/env/bin/python"), cpu_only=False)
    options = ServerOptions("owner/name", tensor_parallel_size=2, gpu_memory_utilization=0.8)
    command = serve_command(options, python, 8000, "owner/name")
    assert command[2:5] == ["vllm.entrypoints.cli.main", "serve", "owner/name"]
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.8"
    assert not {"--enforce-eager", "--dtype", "--max-model-len"} & set(command)
    assert (
        not {"HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"} & serve_environment(options, python).keys()
    )


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "a",
    "PREFECT_API_KEY": "b",
    "OPENAI_API_KEY": "c",
    "GITHUB_TOKEN": "d",
    "DATABASE_URL": "e",
    "VLLM_API_KEY": "f",
}
NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "LD_PRELOAD": "/usr/lib/libtcmalloc.so",
    "CUDA_VISIBLE_DEVICES": "1",
    "HIP_VISIBLE_DEVICES": "1",
    "ROCR_VISIBLE_DEVICES": "1",
    "NCCL_SOCKET_IFNAME": "eth0",
    "HF_TOKEN": "g",
    "https_proxy": "http://proxy:3128",
    "SSL_CERT_FILE": "/etc/company.pem",
    "XDG_CACHE_HOME": "/scratch",
}


def test_the_server_gets_what_it_needs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | NEEDED).items():
        monkeypatch.setenv(name, value)
    python = VLLMPython(Path("/env/bin/python"), cpu_only=False)
    environment = serve_environment(ServerOptions("owner/name"), python)
    assert not SECRETS.keys() & environment.keys()
    assert NEEDED.items() <= environment.items()
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_ENV", "AWS_SECRET_ACCESS_KEY DATABASE_URL NOT_SET")
    environment = serve_environment(ServerOptions("owner/name"), python)
    assert SECRETS.keys() & environment.keys() == {"AWS_SECRET_ACCESS_KEY", "DATABASE_URL"}


@pytest.mark.parametrize(
    ("host", "key", "flags", "exposed"),
    [
        ("127.0.0.1", None, (), False),
        ("::1", None, (), False),
        ("localhost", None, (), False),
        ("192.168.1.7", None, (), True),
        ("::", None, (), True),
        ("gpu-1", "", (), True),
        ("::", "secret", (), False),
        ("::", None, ("--api-key", "secret"), False),
        ("127.0.0.1", None, ("--host", "0.0.0.0"), True),  # noqa: S104
        ("127.0.0.1", None, ("--host=::", "--seed", "1"), True),
        ("127.0.0.1", None, ("--host", "::", "--host=localhost"), False),
        ("::", None, ("--host", "127.0.0.1"), False),
        ("127.0.0.1", "secret", ("--host", "::"), False),
        ("127.0.0.1", None, ("--host",), False),  # vLLM does not start
    ],
)
def test_a_server_that_anyone_can_use_is_known(
    host: str, key: str | None, flags: tuple[str, ...], exposed: bool
) -> None:
    options = ServerOptions("owner/name", host=host, api_key=key, extra_args=flags)
    assert is_exposed(options) == exposed


@pytest.mark.parametrize(
    ("model", "served", "expected"),
    [
        pytest.param(DEMO_MODEL, None, "checkpoint", id="folder"),
        pytest.param(os.path.relpath(DEMO_MODEL) + "/", None, "checkpoint", id="relative"),
        pytest.param("owner/name", None, "owner/name", id="hub name"),
        pytest.param(DEMO_MODEL, "demo", "demo", id="explicit"),
    ],
)
def test_the_model_name_is_never_a_path(
    model: str | Path, served: str | None, expected: str, stand_in: Path
) -> None:
    server = VLLMServer(ServerOptions(model, served_model_name=served, python=stand_in))
    assert server.model_name == expected
