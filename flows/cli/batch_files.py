"""`prefect-imageqa batch-export | batch-import`: a run whose server works offline, through files.

Their flags are those of `run`: the same flags give the same requests and row keys.
"""

import inspect
import json as json_
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ...tasks.errors import EndpointError, StoreError
from ...tasks.generating.request_files import (
    DEFAULT_ROWS,
    MAX_ROWS,
    check_request_folder,
    write_request_files,
)
from ...tasks.loading.dataset import Dataset
from ...tasks.runs.checks import NO_CHECKS
from ...tasks.runs.parameters import RunParameters
from ..batch_requests import PendingRequests, RequestCounts, open_pending
from ..batch_results import BatchResults
from ..image_qa import image_qa
from .options import UsageError
from .run import Json, flow_command, with_code
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
    str,
    Parameter(
        help="Local folder for the files; those of an earlier export are replaced, no others."
    ),
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
_SAY_SECONDS = 30.0
"""How often to say how far an export is, where no terminal shows it."""

_REPLACED = ("endpoint", "pilot")
"""Parameters of a run without a meaning where no server is asked."""


@flow_command(_REPLACED)
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
    folder = _local_folder(to)
    requested = _requested(dataset, parameters | {"model": model})
    check_request_folder(folder)
    with open_pending(requested) as pending:
        _check_outside(folder, pending.table)
        files = write_request_files(folder, _shown(pending), rows_per_file)
        counts = pending.counts
    if json:
        print(json_.dumps({**asdict(counts), "folder": to, "files": files}))
    else:
        print("\n".join(_export_lines(counts, files, folder)))
    return 0


@flow_command(_REPLACED)
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
    requested = _requested(dataset, parameters | {"model": model})
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


def _requested(dataset: str, parameters: dict[str, Any]) -> RunParameters:
    """The parameters of the run that the flags describe.

    Raises:
        UsageError: it has checks.
    """
    bound = inspect.signature(image_qa.fn).bind(dataset, **with_code(parameters))
    bound.apply_defaults()
    requested = RunParameters(**bound.arguments)
    if requested.checks.are_wanted:
        raise UsageError(f"--check: {NO_CHECKS}")
    return requested


def _local_folder(to: str) -> Path:
    if "://" in to:
        raise StoreError(f"{to}: batch files are written to a local folder: copy them from there")
    return Path(to).expanduser()


def _check_outside(folder: Path, table: Dataset) -> None:
    """The next run would take the files for data."""
    if table.folder is not None and folder.absolute().is_relative_to(table.folder):
        raise StoreError(
            f"{folder} is inside the dataset's folder {table.folder}: choose another folder"
        )


def _shown(pending: PendingRequests) -> Iterator[bytes]:
    """The lines of the requests; how many there are is shown meanwhile."""
    console = Console(stderr=True)
    said = time.monotonic()
    with console.status("reading the rows") as status:
        for line in pending.lines():
            progress = f"writing requests: {pending.counts.requests:,}"
            status.update(progress)
            if not console.is_terminal and time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                print(progress, file=sys.stderr)
            yield line


def _export_lines(counts: RequestCounts, files: dict[str, int], folder: Path) -> Iterator[str]:
    """What was exported, and what to do with it."""
    count = f"{len(files):,} {'file' if len(files) == 1 else 'files'}"
    yield f"requests: {counts.requests:,}, in {count} in {folder}"
    if counts.finished:
        yield f"finished already: {counts.finished:,}"
    if counts.duplicates:
        yield f"the same as an earlier row: {counts.duplicates:,}"
    if counts.problems:
        yield f"cannot be asked, the import says why: {counts.problems:,}"
    if counts.suspects:
        yield f"left to a run with a server, because one has crashed on them: {counts.suspects:,}"
    if counts.requests:
        yield (
            "When they are answered, use the same command with batch-import, and --results in "
            "place of --to"
        )
