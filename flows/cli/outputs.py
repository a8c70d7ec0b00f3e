"""`prefect-imageqa status | verify | clean`: the commands that look after an output."""

import json as json_
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cyclopts import App

from .options import Count, Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.exporting.status import OutputStatus
    from ...tasks.object_store.store import ObjectStore
    from ...tasks.runs.records import RunRecord

outputs = App()
"""Commands that `cli` takes over."""


@outputs.command
def status(output: Output, /, *, store: Store = None, json: Flag = False) -> int:
    """Tell where an output stands, also while a run is going on.

    Exit code 0: told; 1: the output cannot be read.

    Example: prefect-imageqa status s3://bucket/qa

    Parameters
    ----------
    json:
        Print one line of JSON.
    """
    from ...tasks.exporting.status import output_status

    place = _open(output, store)
    found = output_status(place)
    if json:
        print(json_.dumps({"output": place.uri, **(_status_json(found) if found else {})}))
    elif found is None:
        print(f"{place.uri}: nothing there yet")
    else:
        for line in _status_lines(place.uri, found):
            print(_printable(line))
    return 0


@outputs.command
def verify(output: Output, /, *, store: Store = None) -> int:
    """Check that every row of the last completed run is there, once, and can be read.

    Reads everything that is stored, and changes nothing. Says each fault in one line: the object,
    what is wrong, what to do. Exit code 0: all is well; 1: it is not, or cannot be read.

    """
    from ...tasks.exporting.verify import verify as verify_output

    place = _open(output, store)
    with _busy(f"reading {place.uri}"):
        verified = verify_output(place)
    if not verified.faults:
        print(f"{verified.rows:,} rows, {verified.objects:,} objects: all there and readable")
        return 0
    for fault in verified.faults:
        print(_printable(fault))
    count = len(verified.faults)
    print(f"{count:,} {'fault' if count == 1 else 'faults'} in {verified.objects:,} objects")
    if verified.is_live:
        print("a run is going on: verify again when it is done")
    return 1


@outputs.command
def clean(
    output: Output,
    /,
    *,
    keep: Count = 1,
    store: Store = None,
    dry_run: Flag = False,
    force: Flag = False,
) -> int:
    """Remove what no configuration needs that is kept: completions, parts, quarantined rows.

    A configuration is all that decides the answers: model, prompts, sampling, image settings,
    parser. Kept are those that were completed last; rows that only the others have are asked again
    by their next run. Exports, the manifest and the records of runs stay, and so do completions
    that runs were told to keep elsewhere (--cache).

    Parameters
    ----------
    keep:
        Configurations to keep.
    dry_run:
        Say what would be removed, and remove nothing.
    force:
        Go on although a run was not completed: rows that only such runs have are removed, too.
    """
    from ...tasks.exporting.clean import find_unused, remove_unused

    place = _open(output, store)
    with _busy(f"reading {place.uri}"):
        unused = find_unused(place, keep, force=force)
    for name in unused.unreadable:
        print(_printable(f"{place.uri_of(name)}: cannot be read and is left; verify says more"))
    if not dry_run:
        with _busy(f"removing {len(unused.objects):,} objects"):
            remove_unused(place, unused)
    print(f"{'would remove' if dry_run else 'removed'} {_sums(unused.objects)}")
    return 0


def _open(output: str, store: str | None) -> "ObjectStore":
    from ..run import open_store

    return open_store(output, store)


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show on a terminal that it takes a while."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(_printable(what).replace("[", r"\[")):
        yield


def _status_lines(uri: str, found: "OutputStatus") -> Iterator[str]:
    yield uri
    if found.last is None:
        yield "last completed run: none yet"
    else:
        last, summary = found.last, found.last.counts
        yield f"last completed run: {last.updated:%Y-%m-%d %H:%M:%S} UTC, {_asked(last)}"
        rows = f"  {summary.rows:,} rows: {summary.ok:,} ok"
        rows += f", {summary.filtered:,} filtered" if summary.filtered else ""
        yield f"{rows}, {_quarantined(summary.reasons, summary.quarantined)}"
    for run in found.unfinished:
        yield f"{'going on' if run.is_live else 'not completed'}: {_asked(run)}"
        yield f"  {_progress(run)}; {_life(run)}"
    for label, counts in found.stored.items():
        kinds = {kind.value: count for kind, count in counts.reasons.items()}
        told = _quarantined(kinds, counts.quarantined)
        yield f"stored by parser {label}: {counts.answered:,} answered, {told}"
    if found.unparsed:
        yield f"stored completions without a part: {found.unparsed:,}; the next run parses them"
    for kind, objects in found.objects.items():
        yield f"  {kind:<12}{objects.count:>9,} objects{_size(objects.bytes):>12}"


def _asked(run: "RunRecord") -> str:
    return f"{run.dataset} asked of {run.model}, parsed by {run.parser}"


def _progress(run: "RunRecord") -> str:
    done, total = run.counts.rows, run.total
    return f"{done:,}{f' of {total:,}' if total is not None else ''} rows done"


def _life(run: "RunRecord") -> str:
    """Whether a run that is not completed goes on, and what to do if not."""
    if run.is_live and run.state == "waiting":
        return "waits for its turn to write"
    if run.is_live:
        return f"last heartbeat {run.silent_seconds:.0f} s ago"
    if run.state in ("running", "waiting"):
        told = f"no heartbeat for {run.silent_seconds:,.0f} s: killed or stuck"
    else:
        told = f"{run.state}{f': {run.error}' if run.error else ''}"
    return f"{told}; the same command goes on from here"


def _quarantined(reasons: Mapping[str, int], count: int) -> str:
    kinds = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
    return f"{count:,} quarantined{f': {told}' if told else ''}"


def _sums(objects: Mapping[str, int]) -> str:
    """Removed objects in one line: '3 objects, 12.0 kB: 2 completions, 1 parts'."""
    kinds = Counter(name.split("/")[1] for name in objects)  # the first says of which pass
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    count = len(objects)
    line = f"{count:,} {'object' if count == 1 else 'objects'}, {_size(sum(objects.values()))}"
    return f"{line}{f': {told}' if told else ''}"


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def _status_json(found: "OutputStatus") -> dict[str, Any]:
    return {
        "last": _run_json(found.last) if found.last else None,
        "unfinished": [_run_json(run) for run in found.unfinished],
        "stored": {
            label: {"answered": counts.answered, "quarantined": dict(counts.reasons)}
            for label, counts in found.stored.items()
        },
        "unparsed": found.unparsed,
        "objects": {
            kind: {"count": objects.count, "bytes": objects.bytes}
            for kind, objects in found.objects.items()
        },
    }


def _run_json(run: "RunRecord") -> dict[str, Any]:
    told = {"going": run.is_live, "silent_seconds": round(run.silent_seconds)}
    return {**run.model_dump(mode="json", exclude_none=True), **told}


def _printable(text: str) -> str:
    """One line that cannot steer the terminal, whatever a stored object holds."""
    return "".join(char if char.isprintable() else " " for char in text)
