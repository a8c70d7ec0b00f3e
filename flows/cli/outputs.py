"""`prefect-imageqa status | verify | clean`: the commands that manage an output."""

import json as json_
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cyclopts import App

from .options import Count, Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.exporting.output_status import OutputStatus
    from ...tasks.object_store.store import ObjectStore
    from ...tasks.runs.run_record import RunRecord
    from ...tasks.storing.ledger import LedgerCounts

outputs = App()
"""Commands that `main` adds to its own."""


@outputs.command
def status(output: Output, /, *, store: Store = None, json: Flag = False) -> int:
    """Show the status of an output, also while a run is in progress.

    Exit code 1 if the output cannot be read.

    Example: prefect-imageqa status s3://bucket/qa

    Parameters
    ----------
    json:
        Print one line of JSON.
    """
    from ...tasks.exporting.output_status import output_status

    output_store = _open(output, store)
    state = output_status(output_store)
    if json:
        print(json_.dumps({"output": output_store.uri, **(_status_json(state) if state else {})}))
    elif state is None:
        print(f"{output_store.uri}: nothing there yet")
    else:
        for line in _status_lines(output_store.uri, state):
            print(_printable(line))
    return 0


@outputs.command
def verify(output: Output, /, *, store: Store = None) -> int:
    """Check that every row of the last completed run is present, once, and readable.

    Reads everything that is stored, and changes nothing. Prints one line per problem: the object,
    what is wrong, what to do. Exit code 1 if there is a problem, or the output cannot be read.

    """
    from ...tasks.exporting.verify_output import verify as verify_output

    output_store = _open(output, store)
    with _busy(f"reading {output_store.uri}"):
        verified = verify_output(output_store)
    if not verified.problems:
        filtered = f"{verified.filtered:,} filtered, " if verified.filtered else ""
        print(
            f"all {verified.rows:,} rows of the last completed run are stored and exported once: "
            f"{verified.ok:,} answered, {filtered}{verified.quarantined:,} quarantined; "
            f"all {verified.objects:,} objects of the output are readable"
        )
        return 0
    for problem in verified.problems:
        print(_printable(problem))
    count = len(verified.problems)
    print(f"{count:,} {'problem' if count == 1 else 'problems'} in {verified.objects:,} objects")
    if verified.is_live:
        print("a run is in progress: verify again when it is done")
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
    """Remove completions, parts and row keys that only old configurations need.

    A configuration is everything that decides the answers: model, prompts, sampling, image
    settings, parser. The last completed configurations are kept. Rows that only other
    configurations have are sent to the model again by their next run. Exports, the manifest, run
    records and completions stored outside of the output (--cache) are never removed.

    Parameters
    ----------
    keep:
        How many configurations to keep.
    dry_run:
        Only show what would be removed.
    force:
        Continue even if a run did not complete: rows that only such runs have are removed, too.
    """
    from ...tasks.exporting.clean_output import find_unused, remove_unused

    output_store = _open(output, store)
    with _busy(f"reading {output_store.uri}"):
        unused = find_unused(output_store, keep, force=force)
    for name in unused.unreadable:
        uri = output_store.uri_of(name)
        print(_printable(f"{uri}: unreadable, not removed; run verify for details"))
    if not dry_run:
        with _busy(f"removing {len(unused.objects):,} objects"):
            remove_unused(output_store, unused)
    if unused.objects:
        print(f"{'would remove' if dry_run else 'removed'} {_sums(unused.objects)}")
    else:
        print("nothing to remove: what is stored belongs to the configurations that are kept")
    return 0


def _open(output: str, store: str | None) -> "ObjectStore":
    from ..open_store import open_store

    return open_store(output, store)


def _busy(what: str) -> AbstractContextManager[object]:
    """A spinner on a terminal; nothing elsewhere."""
    from rich.console import Console

    return Console(stderr=True).status(_printable(what).replace("[", r"\["))


def _status_lines(uri: str, state: "OutputStatus") -> Iterator[str]:
    yield uri
    if state.last is None:
        yield "last completed run: none yet"
    else:
        last, summary = state.last, state.last.counts
        yield f"last completed run: {last.updated:%Y-%m-%d %H:%M:%S} UTC, {_describe(last)}"
        rows = f"  {summary.rows:,} rows: {summary.ok:,} answered"
        rows += f", {summary.filtered:,} filtered" if summary.filtered else ""
        yield f"{rows}, {_quarantined(summary.reasons, summary.quarantined)}"
        if summary.filtered_pairs:
            yield f"  {summary.pairs:,} pairs kept, {summary.filtered_pairs:,} filtered"
    for run in state.unfinished:
        yield f"{'in progress' if run.is_live else 'not completed'}: {_describe(run)}"
        yield f"  {_progress(run)}; {_life(run)}"
        yield from (f"  {note}" for note in run.notes if run.is_live)
    yield from _stored_lines(state)
    if state.unparsed:
        batches = "batch of replies is" if state.unparsed == 1 else "batches of replies are"
        yield f"{state.unparsed:,} {batches} not parsed yet; the next run does it, without asking"
    for kind, objects in state.objects.items():
        yield f"  {kind:<12}{objects.count:>9,} objects{_size(objects.bytes):>12}"


def _stored_lines(state: "OutputStatus") -> Iterator[str]:
    """What is stored in addition to the rows of the last completed run."""
    for label, counts in state.others.items():
        if not counts.answered and not counts.quarantined:
            continue
        kinds = {kind.value: count for kind, count in counts.reasons.items()}
        rows = f"{counts.answered:,} rows answered, {_quarantined(kinds, counts.quarantined)}"
        if state.last is None:
            yield f"stored by now: {rows} (parser {label})"
        else:
            yield (
                f"besides that run's: {rows}, of another dataset, model, prompt or setting "
                f"(parser {label}); its next run asks only for the rest"
            )


def _describe(run: "RunRecord") -> str:
    return f"{run.dataset}, model {run.model or 'unknown'}, parser {run.parser}"


def _progress(run: "RunRecord") -> str:
    if run.is_live and run.progress:
        return run.progress
    done, total = run.counts.rows + run.counts.duplicates, run.total
    rows = f"{done:,}{f' of {total:,}' if total is not None else ''} rows done"
    if run.is_live or run.state not in ("running", "waiting"):
        return rows
    return f"{rows} at its last heartbeat, and perhaps a few more"


def _life(run: "RunRecord") -> str:
    """The state of a run that is not completed, and what to do if it is not in progress."""
    from ..wording import duration

    if run.is_live and run.state == "waiting":
        return "waiting for another run to finish"
    if run.is_live:
        life = f"last heartbeat {duration(run.heartbeat_age)} ago"
        if run.reply_age is not None:
            return f"{life}, last reply {duration(run.reply_age)} ago"
        return f"{life}, no reply yet" if run.counts.attempted else life
    if run.state in ("running", "waiting"):
        outcome = f"no heartbeat for {duration(run.heartbeat_age)}: killed or stuck"
    else:
        outcome = f"{run.state}{f': {run.error}' if run.error else ''}"
    return f"{outcome}; run the same command again to resume"


def _quarantined(reasons: Mapping[str, int], count: int) -> str:
    from ..wording import counted

    details = counted(reasons)
    return f"{count:,} quarantined{f': {details}' if details else ''}"


def _sums(objects: Mapping[str, int]) -> str:
    """Removed objects in one line: '3 objects, 12.0 kB: 2 of completions, 1 of parts'."""
    kinds = Counter(name.split("/")[1] for name in objects)  # <pass>/<kind>/...
    details = ", ".join(f"{count:,} of {kind}" for kind, count in kinds.items())
    count = len(objects)
    line = f"{count:,} {'object' if count == 1 else 'objects'}, {_size(sum(objects.values()))}"
    return f"{line}: {details.replace('of keys', 'of row keys')}"


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def _status_json(state: "OutputStatus") -> dict[str, Any]:
    return {
        "last": _run_json(state.last) if state.last else None,
        "unfinished": [_run_json(run) for run in state.unfinished],
        "stored": _by_parser(state.stored),
        "others": _by_parser(state.others),
        "unparsed": state.unparsed,
        "objects": {
            kind: {"count": objects.count, "bytes": objects.bytes}
            for kind, objects in state.objects.items()
        },
    }


def _by_parser(stored: Mapping[str, "LedgerCounts"]) -> dict[str, Any]:
    return {
        label: {"answered": counts.answered, "quarantined": dict(counts.reasons)}
        for label, counts in stored.items()
    }


def _run_json(run: "RunRecord") -> dict[str, Any]:
    liveness = {"is_live": run.is_live, "heartbeat_age": round(run.heartbeat_age)}
    return {**run.model_dump(mode="json", exclude_none=True), **liveness}


def _printable(text: str) -> str:
    """Make a line safe to print: stored objects may contain control characters."""
    return "".join(char if char.isprintable() else " " for char in text)
