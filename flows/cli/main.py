"""`prefect-imageqa`: the command line. Slow imports wait until a command needs them."""

import os
import sys
from pathlib import Path

from cyclopts import App, CycloptsError

from ...serving.errors import ImageQAError
from .deploy import deployments
from .options import Count
from .outputs import outputs
from .report import reports

app = App(
    name="prefect-imageqa",
    help="Question-answer pairs about your images: a Prefect flow over a vLLM server.",
    suppress_keyboard_interrupt=False,
)
for commands in (outputs, reports, deployments):
    app.update(commands)
app.command("prefect_imageqa.flows.cli.run:run", name="run")


@app.command
def demo(*, output: Path = Path("demo-output"), rows: Count = 48, seed: int = 7) -> int:
    """Draw images, start vLLM with the demo model, run the flow, and show what came of it.

    Needs no GPU and no download: the model is part of this package, and so is the truth about
    the images, so that the share of right answers is known.

    Parameters
    ----------
    output:
        Folder for the images, the answers and the server's log.
    rows:
        Images to draw.
    seed:
        Other seeds draw other images.
    """
    from .demo import run_demo

    return run_demo(output, rows, seed)


@app.command
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
) -> int:
    """Run a vLLM server in the foreground until Ctrl-C: the endpoint that runs are pointed at.

    vLLM lives in an environment of its own. On a GPU machine: `pip install vllm` in one, and
    name its interpreter with --python. Without a GPU, one command builds one:

        python -m prefect_imageqa.serving.server.cpu_env .venv-vllm

    Further flags of `vllm serve` go behind `--`. Clients must send the key in VLLM_API_KEY, if set.

    Parameters
    ----------
    model:
        Path of a checkpoint, or its name on the hub.
    vllm_flags:
        Further flags, handed to vLLM as they are.
    port:
        Port to listen on.
    host:
        Address to listen on; 0.0.0.0 to be reached from other machines.
    served_model_name:
        Name that clients ask for; the checkpoint's own by default.
    python:
        Interpreter that has vLLM.
    tensor_parallel_size:
        GPUs that share each layer.
    data_parallel_size:
        Copies of the model.
    dtype:
        Number format of weights: auto, bfloat16, float16, float32.
    max_model_len:
        Tokens of prompt and reply together.
    gpu_memory_utilization:
        Share of a GPU's memory that vLLM takes, 0 to 1.
    """
    from ...serving.server.launch import ServerOptions
    from ...serving.server.process import terminate_on_signals
    from ...serving.server.server import VLLMServer

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
    _log_to_stderr()
    with terminate_on_signals(), VLLMServer(options) as server:
        print(f"serving {server.model_name} at {server.url}; log: {server.log_file}")
        server.wait()
    return 0


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point: one clear line for what the user can mend.

    Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 130 interrupted.
    """
    try:
        sys.exit(app(exit_on_error=False, print_error=False))
    except CycloptsError as error:
        print(f"prefect-imageqa: {_usage_mistake(error)}", file=sys.stderr)
        sys.exit(2)
    except ImageQAError as error:
        print(f"prefect-imageqa: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("prefect-imageqa: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _usage_mistake(error: CycloptsError) -> str:
    """What is wrong with the command line, in one line."""
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):
        from .run import mistake

        return mistake(error.__cause__, error.argument.name if error.argument else "")
    return " ".join(str(error).split())
