"""The pilot of a run: its first rows are answered and looked at before the others are asked."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from prefect import get_run_logger

from ..tasks.checking.negatives import tried_share
from ..tasks.errors import PilotError
from ..tasks.records import Batch, Prompt
from ..tasks.reporting.markdown import GALLERY_ROWS
from ..tasks.reporting.prompted_rows import prompted_rows
from .approval import wait_for_approval
from .client_settings import client_settings
from .image_proof import prove_images
from .open_pass import OpenPass
from .publish.artifacts import show_pilot
from .publish.publish import ARTIFACT_SECONDS
from .run import Run
from .run_log import IS_RESULT
from .wording import duration, rate

Answer = Callable[[Iterator[Batch]], None]


@dataclass
class PilotRows:
    """What is remembered of the rows of a pilot.

    Attributes:
        limit: how many there are at most.
        keys: their row keys.
        shown: those for the gallery.
        seconds: how long they took.
    """

    limit: int
    keys: list[str] = field(default_factory=list)
    shown: list[Prompt] = field(default_factory=list)
    seconds: float = 0.0

    def taken_from(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches with the first rows."""
        step = max(1, self.limit // GALLERY_ROWS)
        while len(self.keys) < self.limit and (batch := next(batches, None)) is not None:
            offset = -len(self.keys) % step
            self.shown += batch.prompts[offset::step]
            self.keys += [prompt.key for prompt in batch.prompts]
            yield batch


def run_pilot(
    run: Run, current: OpenPass, batches: Iterator[Batch], answer: Answer
) -> Iterator[Batch]:
    """Check that the servers see the images; then answer the first rows, and judge the replies.

    Args:
        run: the run.
        current: its main pass.
        batches: those of the pass, which have a boundary after the rows of the pilot.
        answer: takes batches through generate, parse and store, and then rows that may crash the
            server.

    Returns:
        The batches that are left.

    Raises:
        EndpointError: a server answers without seeing the images.
        PilotError: too few rows are usable, or nobody approved the others in time.
    """
    if run.is_import:  # asks no server
        return batches
    settings = run.parameters.pilot
    batches, tokens = prove_images(run, current, batches)
    if not settings.rows:
        return batches
    run.progress.needs_total.set()  # for the estimate
    pilot = PilotRows(settings.rows)
    began = time.monotonic()
    answer(pilot.taken_from(batches))
    pilot.seconds = time.monotonic() - began
    if not pilot.keys:  # no row was pending
        return batches
    following = next(batches, None)
    statement = _statement(run, current, pilot, tokens)
    get_run_logger().info("pilot: %s", "; ".join(statement), extra={IS_RESULT: True})
    if following is None:  # there is nothing to be saved by stopping
        return iter(())
    _show(run, current, pilot, statement)
    _check_share(current, pilot, settings.min_parsed)
    if settings.approval:
        wait_for_approval(run.progress, statement, settings.wait)
    return chain([following], batches)


def _statement(run: Run, current: OpenPass, pilot: PilotRows, tokens: float | None) -> list[str]:
    """What the pilot has shown, a clause each."""
    rows, usable = _finished(current)
    clauses = [f"{usable:,} of {rows:,} rows have usable pairs ({usable / rows:.0%})"]
    if tokens is not None:
        clauses.append(f"an image adds {tokens:,.0f} tokens to the prompt")
    speed = rows / pilot.seconds
    clauses += [rate(speed), _estimate(run, speed)]
    if requests := run.checks.requests:
        plural = "" if requests == 1 else "s"
        clauses.append(f"then the checks ask at most {requests} request{plural} for each pair")
    if negatives := run.checks.wanted.negatives:
        tried = tried_share(negatives)
        clauses.append(f"negatives ask 2 requests for up to {tried:.0%} of the pairs")
    return clauses


def _estimate(run: Run, speed: float) -> str:
    total, servers = run.progress.total, run.client.server_count
    if total is None:
        return "how many rows are left is not known yet"
    left = max(0, total - run.progress.done)
    seconds = left / speed
    hours = seconds * servers / 3600
    each = "its server" if servers == 1 else f"each of the {servers} servers"
    return (
        f"the other {left:,} rows take {duration(seconds)} at that rate, "
        f"{_amount(hours)} GPU-hours if {each} has one GPU"
    )


def _amount(hours: float) -> str:
    if hours < 0.01:
        return "less than 0.01"
    return f"{hours:.2f}" if hours < 1 else f"{hours:,.1f}"


def _show(run: Run, current: OpenPass, pilot: PilotRows, statement: list[str]) -> None:
    settings = current.generation_settings
    outcomes = list(current.ledger.outcomes([prompt.key for prompt in pilot.shown]))
    rows = prompted_rows(pilot.shown, outcomes, settings.reader, settings.images)
    with client_settings(max_retries=1, timeout=ARTIFACT_SECONDS):
        show_pilot(run.output, statement, rows, of=len(pilot.keys))


def _finished(current: OpenPass) -> tuple[int, int]:
    """How many rows the run has finished so far, and how many of them with usable pairs."""
    progress = current.progress
    return progress.ok + progress.quarantined, progress.ok


def _check_share(current: OpenPass, pilot: PilotRows, min_parsed: float) -> None:
    rows, usable = _finished(current)
    if usable >= min_parsed * rows:
        return
    reasons = current.ledger.counts(pilot.keys).reasons.most_common()
    why = ", ".join(f"{count:,} {kind}" for kind, count in reasons)
    raise PilotError(
        f"stopped after the pilot: {usable:,} of its {rows:,} rows have usable pairs, less than "
        f"pilot.min_parsed {min_parsed:g} demands{f' ({why})' if why else ''}. All answers are "
        "stored; fix the cause or lower pilot.min_parsed, and run again (with "
        "caching.retry_quarantined, the failed rows too)"
    )
