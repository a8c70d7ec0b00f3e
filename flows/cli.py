"""`prefect-imageqa`: the command line. Slow imports wait until a command needs them."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from ..serving.errors import ImageQAError
from .cli_deploy import deployments
from .cli_outputs import outputs
from .cli_report import reports

Flag = Annotated[bool, Parameter(negative=())]
Count = Annotated[int, Parameter(validator=Number(gte=1))]

app = App(
    name="prefect-imageqa",
    help="Question-answer pairs about your images: a Prefect flow over a vLLM server.",
    suppress_keyboard_interrupt=False,
)
for commands in (outputs, reports, deployments):
    app.update(commands)


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

        python -m prefect_imageqa.serving.cpu_env .venv-vllm

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
    from ..serving.launch import ServerOptions
    from ..serving.process import terminate_on_signals
    from ..serving.server import VLLMServer

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


@app.command
def run(
    dataset: str,
    /,
    *,
    output: str,
    endpoint: Annotated[list[str] | None, Parameter(negative=())] = None,
    model: str | None = None,
    system_prompt: str | None = None,
    user_prompt: str | None = None,
    pairs_per_image: Annotated[int, Parameter(validator=Number(gte=1, lte=20))] = 1,
    image_key: str = "image",
    conversation_key: str = "conversation",
    output_key: str = "output",
    image_root: str | None = None,
    batch_size: Annotated[int, Parameter(validator=Number(gte=1, lte=512))] = 256,
    max_in_flight: Count = 128,
    temperature: Annotated[float, Parameter(validator=Number(gte=0, lte=2))] = 0.7,
    max_tokens: Count = 512,
    seed: int = 42,
    limit: Count | None = None,
    store: str | None = None,
    cache: str | None = None,
    refresh: Flag = False,
    retry_quarantined: Flag = False,
    max_error_rate: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.5,
    allow_private_hosts: Flag = False,
    json: Flag = False,
) -> int:
    """Ask for question-answer pairs about the images of a dataset.

    The same command can be repeated at any time, and means "finish what is missing": rows that
    are answered under --output are not asked again. Rows that cannot be answered are quarantined
    with the reason. Exit code 0: the run finished, quarantined rows included; 1: it could not;
    2: usage.

    Example: prefect-imageqa run qas.json --output s3://bucket/qa --endpoint http://gpu-1:8000

    Parameters
    ----------
    dataset:
        JSON array, JSON lines or CSV file (also compressed), Parquet, a folder or glob of
        images; a local path or s3:// URI.
    output:
        Local path or s3:// URI under which the run keeps everything.
    endpoint:
        URL of a running vLLM server, or the name of a saved VLLMEndpoint block; repeat the
        option for several URLs. Without it, a server is started for --model and stopped after.
    model:
        Name the server serves the model under; without --endpoint, its path or hub name.
    system_prompt:
        Said before every conversation; a question-answer generator's by default.
    user_prompt:
        Asked where a row has no conversation.
    pairs_per_image:
        QA pairs to ask for where neither the row nor --user-prompt says what.
    image_key:
        Image column.
    conversation_key:
        Conversation column, used where a row has one.
    output_key:
        Column that gets the raw reply.
    image_root:
        Folder that relative image paths start from, and may not leave.
    batch_size:
        Rows that are generated, stored and retried together, 1 to 512.
    max_in_flight:
        Requests sent and not yet answered, over all endpoints.
    temperature:
        Sampling temperature; 0 always takes the best token.
    max_tokens:
        Tokens of a reply; a longer one is quarantined as truncated.
    seed:
        Seed of the sampling.
    limit:
        Only the first rows of the dataset.
    store:
        Name of a saved ObjectStore block whose S3 credentials are used; by default the AWS
        environment, profile or role.
    cache:
        Path or s3:// URI for raw completions, to share them between outputs; by default they
        lie in the output.
    refresh:
        Ask every row again, whatever is stored.
    retry_quarantined:
        Ask also those quarantined rows again whose failure will not pass by itself.
    max_error_rate:
        Stop when more than this share of the last 256 rows asked has failed, 0 to 1.
    allow_private_hosts:
        Fetch web images also from private and loopback addresses.
    json:
        Print one line of JSON last on stdout.
    """
    if not endpoint and model is None:
        print("prefect-imageqa: give --endpoint, or --model to start a server", file=sys.stderr)
        return 2
    if not output_key:
        print("prefect-imageqa: --output-key is empty: name the column", file=sys.stderr)
        return 2
    from .settings import Columns, Images, Limits, Reuse, Sampling
    from .terminal import run_in_terminal

    prompts = {"system_prompt": system_prompt, "user_prompt": user_prompt}
    summary = run_in_terminal(
        dataset=dataset,
        output=output,
        endpoint=endpoint,
        model=model,
        pairs_per_image=pairs_per_image,
        limit=limit,
        store=store,
        sampling=Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed),
        columns=Columns(image=image_key, conversation=conversation_key, output=output_key),
        images=Images(root=image_root, allow_private_hosts=allow_private_hosts),
        limits=Limits(
            batch_size=batch_size, max_in_flight=max_in_flight, max_error_rate=max_error_rate
        ),
        reuse=Reuse(cache=cache, refresh=refresh, retry_quarantined=retry_quarantined),
        **{name: text for name, text in prompts.items() if text is not None},
    )
    print(summary.to_json_line() if json else f"{summary}\n{summary.output}")
    return 0


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point: one clear line for what the user can mend.

    Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 130 interrupted.
    """
    try:
        sys.exit(app(exit_on_error=False))
    except CycloptsError:
        sys.exit(2)  # cyclopts has said what was wrong
    except ImageQAError as error:
        print(f"prefect-imageqa: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("prefect-imageqa: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
