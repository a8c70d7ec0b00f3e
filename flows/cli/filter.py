"""`prefect-imageqa filter`: which pairs of an output are kept, decided anew without a request."""

import json as json_
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

from cyclopts import Parameter

from ...serving.printable import printable
from ...tasks.checking.balance import Cap
from ...tasks.checking.best import Best
from ...tasks.exporting.split_plan import PairSplit
from ...tasks.exporting.trainers import ExportSource, write_export
from ...tasks.exporting.trainers.export_record import ExportRecord, export_folder, read_exports
from ...tasks.exporting.trainers.write import warning_lines
from ...tasks.runs.exports import Exports
from ...tasks.runs.run_record import completed_run
from ..filtering import filtered, planned_filter
from ..open_store import open_store
from .options import Flag, ImageRoot, Output, PrivateHosts, Store, UsageError
from .source import open_source, write_report

T = TypeVar("T")

_WIDTH = 60
"""Characters of the first column; what is longer is cut."""


def filter_output(
    output: Output,
    /,
    *,
    keep: str = "",
    keep_best: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    max_per: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    dry_run: Flag = False,
    json: Flag = False,
    dataset: str | None = None,
    image_root: ImageRoot = None,
    store: Store = None,
    allow_private_hosts: PrivateHosts = False,
) -> int:
    """Decide anew which pairs of an output are kept, without asking the model.

    Starts from all pairs, whatever an earlier filter took out: pairs.parquet gets those that are
    kept, filtered.parquet the others, each with the reason. Exports for training that are there are
    written anew, and so are the report and the dataset card. A run does the same with --keep,
    --keep-best and --max-per. Exit code 0: done; 1: the condition cannot be used, there is no
    completed run, or something cannot be read or written; 2: usage error.

    Example: prefect-imageqa filter qa --keep "consistency >= 0.66 AND length(answer) < 100"

    Parameters
    ----------
    keep:
        SQL condition on the columns of pairs.parquet. Where it says nothing, because a check has
        no result, a pair is not kept. true keeps all.
    keep_best:
        Of the pairs that meet the condition, the best share by a number of a check, such as
        confidence=0.9 (the best 90 %). Pairs without a result are not kept. May be given several
        times.
    max_per:
        Limit on the kept pairs of one type, answer or image, such as type=0.3 (at most 30 % of
        all) or image=5 (at most 5 each). Which ones stay is drawn with the run's seed of checks.
        May be given several times.
    dry_run:
        Only show how many pairs would stay.
    json:
        Print one line of JSON.
    dataset:
        The dataset of the run, from which the images of exports and report are read.
    """
    keep = keep.strip()
    if not keep and not keep_best and not max_per:
        raise UsageError("give --keep, --keep-best or --max-per; --keep true keeps all pairs")
    caps = _parsed("--max-per", Cap.parse, max_per)
    best = _parsed("--keep-best", Best.parse, keep_best)
    output_store = open_store(output, store)
    if dry_run:
        split = planned_filter(output_store, keep, caps, best)
    else:
        with (
            open_source(output_store, dataset, image_root, allow_private_hosts) as source,
            filtered(output_store, keep, caps, best) as split,
        ):
            _rewrite_exports(source, with_dataset=dataset is not None)
            write_report(source)
    if json:
        counts = split.model_dump(mode="json")
        print(json_.dumps({"output": output_store.uri, "dry_run": dry_run, **counts}))
    else:
        for line in _lines(split):
            print(line)
    return 0


def _parsed(flag: str, parse: Callable[[str], T], given: Iterable[str]) -> list[T]:
    """What an option was given, each once."""
    try:
        return list(dict.fromkeys(map(parse, given)))
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def _rewrite_exports(source: ExportSource, *, with_dataset: bool) -> None:
    """Write the exports that are there anew; say of each that cannot be what to do."""
    output = source.output
    needs_images = bool(source.columns.image or source.columns.conversation)
    exports = completed_run(output).parameters.exports
    for record in read_exports(output):
        if needs_images and not with_dataset:
            print(
                f"export {record.format} still has the pairs from before: write it anew with "
                f"`prefect-imageqa export {output.uri} --format {record.format} --dataset ...`",
                file=sys.stderr,
            )
            continue
        settings = _settings(record, exports)
        target = export_folder(output, record.format)
        for line in warning_lines(write_export(source, record.format, settings, target)):
            print(line, file=sys.stderr)
    if needs_images and not with_dataset:
        print("the report has no images: give the run's dataset as --dataset", file=sys.stderr)


def _settings(record: ExportRecord, exports: Exports) -> Exports:
    """How an export was written; the size of its files is known only if the run wrote it."""
    return Exports(
        formats=(record.format,),
        images=record.images,
        shard_size=exports.shard_size if record.format in exports.formats else None,
        validation=record.validation,
        split_seed=record.seed,
    )


def _lines(split: PairSplit) -> Iterator[str]:
    """What each part of the filter does, and what is kept."""
    if split.parts:
        headers = ("met", "not met", "no result", "not asked")
        yield " " * _WIDTH + "".join(f"{header:>12}" for header in headers)
    for part in split.parts:
        yield _line(part.text, part.passed, part.failed, part.unknown, part.unasked)
    for reason, count in split.reasons.items():
        yield _line(f"filtered: {reason}", count)
    pairs, rows = split.pairs + split.filtered_pairs, split.rows + split.filtered_rows
    share = f" ({100 * split.pairs / pairs:.1f} %)" if pairs else ""
    yield f"{split.pairs:,} of {pairs:,} pairs kept{share}, of {split.rows:,} of {rows:,} rows"


def _line(text: str, *counts: int) -> str:
    numbers = "".join(f"{count:>12,}" for count in counts)
    return f"{printable(text, _WIDTH - 2):<{_WIDTH}}{numbers}"
