"""`prefect-imageqa plan`: what a run over a dataset will take, before it is started."""

import json as json_
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ...tasks.loading.columns import Columns
from ...tasks.loading.load import open_dataset
from ..open_store import open_store
from .options import Flag, Store, UsageError
from .sizes import Figure, Size, figures, sources_of

Rate = Annotated[
    float,
    Parameter(
        validator=Number(gt=0),
        help="Requests that one GPU answers in a second, such as a pilot (run --pilot 200) tells.",
    ),
]
Gpus = Annotated[int, Parameter(validator=Number(gte=1), help="GPUs that answer.")]
Rows = Annotated[
    int | None,
    Parameter(validator=Number(gte=1), help="Plan for so many rows; by default all are counted."),
]


def plan(
    dataset: str = "",
    /,
    *,
    rate_per_gpu: Rate,
    gpus: Gpus,
    rows: Rows = None,
    store: Store = None,
    json: Flag = False,
) -> int:
    """Tell what a run will take: GPU hours, cores, processes, memory, requests to S3, exports.

    It is computed from the rows, from how fast the GPUs answer, and from what runs were measured to
    take. Each line says whether runs of that size were measured, or of fewer rows. Samples, checks
    and separate answers ask more than once about a row: give the number of requests as --rows.

    Exit code 0: planned; 1: the dataset cannot be read; 2: usage error.

    Example: prefect-imageqa plan qas.json --rate-per-gpu 30 --gpus 8

    Parameters
    ----------
    dataset:
        Path or s3:// URI, as for a run; may be left out if --rows is given.
    json:
        Print one line of JSON.
    """
    if not isfinite(rate_per_gpu):
        raise UsageError("--rate-per-gpu must be a number of requests a second, such as 30")
    if not dataset and rows is None:
        raise UsageError("give a dataset, or --rows")
    counted = _rows(dataset, store, count=rows is None) if dataset else 0
    size = Size(rows or counted, rate_per_gpu, gpus)
    found = figures(size)
    if json:
        print(json_.dumps({**asdict(size), "figures": [asdict(figure) for figure in found]}))
    else:
        _show(size, found)
    return 0


def _rows(dataset: str, store: str | None, *, count: bool) -> int:
    """The rows of a dataset, which must be readable; 0 if they need not be counted."""
    table = open_dataset(dataset, Columns(), credentials=open_store(".", store).s3_credentials)
    if not count:
        return 0
    return table.count if table.count is not None else sum(1 for _ in table.rows())


def _show(size: Size, found: Sequence[Figure]) -> None:
    sources = sources_of(found)
    print(f"{size.rows:,} rows")
    for figure in found:
        number = f" [{sources.index(figure.source) + 1}]" if figure.source else ""
        basis = f"{figure.basis}{number}"
        print(f"{figure.text:>11}  {figure.label:29} {basis:17} {figure.note}".rstrip())
    print()
    for place, source in enumerate(sources, 1):
        print(f"[{place}] {source}")
