"""Waits until a person lets the run go on: in Prefect's UI, or at the terminal."""

import select
import sys
import termios
from collections.abc import Sequence
from uuid import uuid4

from httpx import HTTPError
from prefect import get_run_logger
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment

from ..tasks.errors import PilotError
from ..tasks.reporting.markdown import escape_markdown
from .progress import RunProgress
from .wording import duration

POLL_SECONDS = 1


class Approval(RunInput):
    """What is shown to whoever resumes the run; nothing has to be filled in."""


def check_can_ask(progress: RunProgress) -> None:
    """Fail before anything is asked, if there will be nobody who could approve.

    Raises:
        PilotError: the run has no deployment, and is not started at a terminal.
    """
    if progress.ask is None and not deployment.id and not at_terminal():
        raise PilotError(
            "pilot.approval needs somebody to ask: run a deployment, which is resumed in Prefect's "
            "UI, or start the run at a terminal"
        )


def wait_for_approval(progress: RunProgress, statement: Sequence[str], seconds: int) -> None:
    """Return when somebody lets the run go on.

    Meanwhile the run keeps its output and its server, and sends no requests. `statement` is what
    the pilot has shown, a clause each.

    Raises:
        PilotError: nobody did in that time, the answer was no, or Prefect's server was lost.
    """
    note = f"the pilot waits for approval, up to {duration(seconds)}"
    get_run_logger().warning("%s; no requests are sent meanwhile", note)
    try:
        with progress.saying(note):
            if progress.ask is None and deployment.id:
                approved = _resumed(statement, seconds)
            else:
                question = f"Pilot: {'; '.join(statement)}.\nAsk the other rows?"
                approved = (progress.ask or ask_at_terminal)(question, seconds)
    except HTTPError as error:
        raise PilotError(
            "stopped after the pilot: Prefect's server, where it is approved, does not answer "
            f"({type(error).__name__}); its answers are stored: run again"
        ) from None
    if not approved:
        raise PilotError(
            "stopped after the pilot: nobody approved it; its answers are stored: run again to be "
            "asked after the next rows, or without pilot.approval to go on"
        )


def _resumed(statement: Sequence[str], seconds: int) -> bool:
    """Pause the flow run until it is resumed in Prefect's UI; False if it is not in time."""
    lines = [f"- {escape_markdown(clause)}" for clause in statement]
    text = "\n".join(["**Pilot**, see the artifact of that name:", "", *lines])
    form = Approval.with_initial_data(description=text)
    try:
        # With a key of its own: a retry of the flow must not take an earlier approval for its own.
        pause_flow_run(form, timeout=seconds, poll_interval=POLL_SECONDS, key=str(uuid4()))
    except FlowPauseTimeout:
        return False
    return True


def at_terminal() -> bool:
    """Whether a person can see a question and type the answer."""
    # A process may be started without a stream.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask_at_terminal(question: str, seconds: float) -> bool:
    """Whether a person answers yes in time."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before is no answer to this
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.readline().strip().lower() in {"y", "yes"}
