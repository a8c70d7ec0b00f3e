"""`prefect-imageqa serve`: a vLLM server that is kept running."""

import logging
import os
import sys

from cyclopts import App

from ...serving.server.launch import ServerOptions
from ...serving.server.process import terminate_on_signals
from ...serving.server.server import VLLMServer
from ...serving.server.watch import keep_running

servers = App()
"""Merged into the app of `main`."""


@servers.command
def serve(
    model: str,
    /,
    *vllm_flags: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    served_model_name: str | None = None,
    python: str | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    dtype: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    stall_timeout: float = 300.0,
) -> int:
    """Run a vLLM server in the foreground until Ctrl-C, as an endpoint for runs.

    It is restarted when it dies or hangs; after five restarts in a row without a reply in between,
    or 60 within a day, the command gives up.

    vLLM needs a separate environment. On a GPU machine, `pip install vllm` in one, and pass its
    interpreter as --python. Without a GPU, this command builds one:

        python -m prefect_imageqa.serving.server.cpu_env .venv-vllm

    Put further flags of `vllm serve` after `--`. If VLLM_API_KEY is set, clients must send that
    key; `prefect-imageqa run` sends the one in PREFECT_IMAGEQA_API_KEY.

    Parameters
    ----------
    model:
        Path of a checkpoint, or its name on the Hub.
    vllm_flags:
        Further flags, passed to vLLM unchanged.
    port:
        Port to listen on.
    host:
        Address to listen on; 0.0.0.0 to be reachable from other machines.
    served_model_name:
        Model name for clients; by default the checkpoint's own.
    python:
        Interpreter of an environment that has vLLM.
    tensor_parallel_size:
        Number of GPUs that each layer is split over.
    data_parallel_size:
        Number of copies of the model.
    dtype:
        Data type of the weights: auto, bfloat16, float16, float32.
    max_model_len:
        Maximum number of tokens in prompt and reply together.
    gpu_memory_utilization:
        Fraction of a GPU's memory that vLLM may use, 0 to 1.
    stall_timeout:
        Seconds without a token until a server that still computes is restarted. Raise it for long
        prompts on a slow machine. One that does not even compute is restarted after a minute.
    """
    options = ServerOptions(
        model,
        host=host,
        port=port,
        served_model_name=served_model_name,
        python=python,
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        dtype=dtype,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        extra_args=vllm_flags,
        api_key=os.environ.get("VLLM_API_KEY"),
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with terminate_on_signals(), VLLMServer(options) as server:
        print(f"serving {server.model_name} at {server.url}; log: {server.log_file}", flush=True)
        keep_running(server, stall_timeout)
