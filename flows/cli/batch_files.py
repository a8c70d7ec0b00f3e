"""`prefect-imageqa batch-export | batch-import`: a run whose server works offline, through files.

Their flags are those of `run`: the same flags give the same requests and row keys.
"""

import inspect
import json as json_
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import ValidationError
from rich.console import Console

from ...tasks.errors import EndpointError
from ...tasks.generating.request_files import (
    DEFAULT_ROWS,
    MAX_ROWS,
    check_request_folder,
    write_request_files,
)
from ...tasks.runs.parameters import RunParameters
from ..batch_files.requests import PendingRequests, RequestCounts, open_pending
from ..batch_files.results import BatchResults
from ..image_qa import image_qa
from .options import Flag
from .run import as_option, flow_parameters, validation_message, with_code
from .terminal import run_in_terminal

RowsPerFile = Annotated[
    int,
    Parameter(
        validator=Number(gte=1, lte=MAX_ROWS),
        help="Most requests of a file; it has fewer if it would get larger than 200 MB. vLLM reads "
        "a file whole, and writes no result before all of its requests are answered.",
    ),
]
To = Annotated[
    Path,
    Parameter(help="Folder for the files; those of an earlier export are replaced, no others."),
]
Results = Annotated[
    list[str],
    Parameter(
        consume_multiple=True,
        negative=(),
        help="Files with results, or folders with *.jsonl files of them.",
    ),
]
Model = Annotated[str, Parameter(help="Name that the model is served under, part of row keys.")]
Json = Annotated[Flag, Parameter(help="Print one line of JSON last on stdout.")]


def batch_export(
    dataset: str,
    /,
    *,
    to: To,
    model: Model,
    rows_per_file: RowsPerFile = DEFAULT_ROWS,
    json: Json = False,
    **parameters: Any,
) -> int:
    """Write the requests of a run to OpenAI batch files, for a server that works offline.

    The files are requests-00001.jsonl and so on, for `vllm run-batch` or a hosted service. They
    have the rows that a run with the same flags would ask: nothing is written to its output, and
    no server is asked.

    If questions are answered separately, the first export has the rows; once these are imported,
    the next export has their questions.

    Exit code 0: written; 1: dataset or output cannot be used; 2: usage error.

    Example: prefect-imageqa batch-export qas.json --output qa --to requests --model qwen3-vl
    """

    def export(requested: RunParameters) -> int:
        check_request_folder(to)
        with open_pending(requested) as pending:
            files = write_request_files(to, _shown(pending), rows_per_file)
            counts = pending.counts
        if json:
            print(json_.dumps({**asdict(counts), "folder": str(to), "files": files}))
        else:
            print("\n".join(_export_lines(counts, files, to)))
        return 0

    return _with_parameters(export, dataset, parameters | {"model": model})


def batch_import(
    dataset: str,
    /,
    *,
    results: Results,
    model: Model,
    json: Json = False,
    **parameters: Any,
) -> int:
    """Store the results of batch files as a run would, and write its exports.

    Give the dataset, the output and the flags that batch-export was given. A row without a result
    is quarantined as `connection`: a later run with the same flags asks for it, and for nothing
    else; so does a later batch-export.

    Exit code 0: imported, even with quarantined rows; 1: it failed, or no row is answered; 2: usage
    error.

    Example: prefect-imageqa batch-import qas.json --output qa --results results --model qwen3-vl
    """

    def store(requested: RunParameters) -> int:
        replies = BatchResults(results, requested.sampling.max_tokens)
        with open_pending(requested) as pending:
            if not any(key in replies for key in pending.keys()):  # noqa: SIM118 - not a dict
                raise EndpointError(
                    f"none of the {len(replies):,} results is about a row of this run: give the "
                    "dataset, --model and the other flags that batch-export was given"
                )
        # Rows without a result cost no request, so there is no reason to stop.
        limits = requested.limits.model_copy(update={"max_error_rate": 1.0})
        given = with_code(parameters) | {"model": model, "endpoint": replies, "limits": limits}
        summary = run_in_terminal(dataset, given)
        print(summary.to_json_line() if json else f"{summary}\n{summary.output}")
        return 0

    return _with_parameters(store, dataset, parameters | {"model": model})


def _with_parameters(
    command: Callable[[RunParameters], int], dataset: str, parameters: dict[str, Any]
) -> int:
    """Call a command with the parameters of the run that its flags describe."""
    try:
        bound = inspect.signature(image_qa.fn).bind(dataset, **with_code(parameters))
        bound.apply_defaults()
        return command(RunParameters(**bound.arguments))
    except ValidationError as error:
        print(f"prefect-imageqa: {validation_message(error)}", file=sys.stderr)
        return 2


def _shown(pending: PendingRequests) -> Iterator[bytes]:
    """The lines of the requests; how many there are is shown on a terminal."""
    with Console(stderr=True).status("reading the rows") as status:
        for line in pending.lines():
            status.update(f"writing requests: {pending.counts.requests:,}")
            yield line


def _export_lines(counts: RequestCounts, files: dict[str, int], folder: Path) -> Iterator[str]:
    """What was exported, and what to do with it."""
    names = f"{len(files):,} files" if len(files) > 1 else next(iter(files), "no file")
    yield f"{counts.requests:,} requests in {names} in {folder}"
    if counts.finished:
        yield f"  {counts.finished:,} rows are finished already"
    if counts.duplicates:
        yield f"  {counts.duplicates:,} rows ask the same as another one"
    if counts.problems:
        yield f"  {counts.problems:,} rows cannot be asked: the import says why"
    if counts.suspects:
        yield (
            f"  {counts.suspects:,} rows are left to a run: a server has crashed while it worked "
            "on them"
        )
    if counts.requests:
        yield (
            "When they are answered, use the same command with batch-import, and --results in "
            "place of --to"
        )


_REPLACED = {"endpoint", "model"}


def _options(command: Callable[..., int]) -> list[inspect.Parameter]:
    """The command's own options, then those of the flow, which has no endpoint."""
    own = [
        option
        for option in inspect.signature(command).parameters.values()
        if option.kind is not option.VAR_KEYWORD and option.name != "dataset"
    ]
    flow = [as_option(of) for name, of in flow_parameters().items() if name not in _REPLACED]
    return [*flow, *own]


_, _, _DESCRIPTIONS = str(image_qa.fn.__doc__).partition("\n    Args:\n")
_COMMANDS: tuple[Any, ...] = (batch_export, batch_import)
for _command in _COMMANDS:
    _command.__doc__ = f"{_command.__doc__}\n    Args:\n{_DESCRIPTIONS}"
    _command.__signature__ = inspect.Signature(_options(_command))
    _command.__annotations__ = {option.name: option.annotation for option in _options(_command)}
