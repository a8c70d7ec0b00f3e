"""`prefect-imageqa`: the command line. Slow imports are deferred until a command needs them."""

import os
import select
import signal
import sys
from pathlib import Path

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

from ...serving.errors import ImageQAError
from ...serving.printable import printable_traceback
from ..process_memory import collect_rarely, keep_little_freed_memory
from .deploy import deployments
from .evaluate import evaluations
from .options import Count, UsageError
from .outputs import outputs
from .report import reports
from .review import reviews
from .serve import servers

app = App(
    name="prefect-imageqa",
    help="Question-answer pairs about your images: a Prefect flow over a vLLM server.",
    suppress_keyboard_interrupt=False,
)
for commands in (outputs, reports, evaluations, reviews, deployments, servers):
    app.update(commands)
_IMPORTED_LATER = {
    "run": (
        "run:run",
        "Ask a vLLM server for question-answer pairs about the images in every row.",
    ),
    "export": (
        "export:export",
        "Write the pairs of an output in a format that trainers load, without asking the model.",
    ),
    "filter": (
        "filter:filter_output",
        "Decide anew which pairs of an output are kept, without asking the model.",
    ),
    "batch-export": (
        "batch_files:batch_export",
        "Write the requests of a run to batch files, for a server that works offline.",
    ),
    "batch-import": (
        "batch_files:batch_import",
        "Store the results of batch files as a run would, and write its exports.",
    ),
    "preview": (
        "preview:preview",
        "Compare styles on a few rows: what they ask, and what the model replies.",
    ),
    "plan": (
        "plan:plan",
        "Tell what a run over a dataset will take: GPU hours, cores, memory, requests, exports.",
    ),
    "styles": (
        "styles:styles",
        "List the styles: what can be asked about a row, each with an example.",
    ),
}
"""Commands that import the flow: where they are, and their line in the list of all commands."""

for _name, (_place, _line) in _IMPORTED_LATER.items():
    app.command(f"prefect_imageqa.flows.cli.{_place}", name=_name, help=_line)


@app.command
def demo(*, output: Path = Path("demo-output"), rows: Count = 48, seed: int = 7) -> int:
    """Draw images, start vLLM with the demo model, run the flow, and show the results.

    Needs no GPU and no download: the model is part of this package. The images are generated, so
    the share of correct answers is known.

    Parameters
    ----------
    output:
        Folder for the images, the answers and the server's log.
    rows:
        Number of images to draw.
    seed:
        Seed of the images.
    """
    from .demo import run_demo

    return run_demo(output, rows, seed)


_RUNS = (["run"], ["batch-import"])
"""Commands that run the flow."""


def main() -> None:
    """Entry point. A user error is reported in one line, without a traceback.

    Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted, 141 nobody reads the output.
    """
    sys.excepthook = lambda _, error, __: print(printable_traceback(error), file=sys.stderr)
    collect_rarely()
    keep_little_freed_memory()
    runs_flow = sys.argv[1:2] in _RUNS
    if {"-h", "--help"}.intersection(sys.argv):
        _describe(sys.argv[1])
    elif runs_flow:
        from ...serving.temporary_server import start_early

        start_early()
    try:
        code = app(exit_on_error=False, print_error=False)
        sys.stdout.flush()
        sys.exit(code)
    except (CycloptsError, UsageError) as error:
        text = error if isinstance(error, UsageError) else _usage_error(error)
        print(f"prefect-imageqa: {text}", file=sys.stderr)
        sys.exit(2)
    except ImageQAError as error:
        print(f"prefect-imageqa: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        hint = "; run the same command again to resume" if runs_flow else ""
        print(f"prefect-imageqa: interrupted{hint}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        sys.exit(128 + signal.SIGPIPE)


def _describe(name: str) -> None:
    """Have the help of a command say all that its docstring says, not only its first line."""
    if name in _IMPORTED_LATER:
        app[name].help = str(app[name].default_command.__doc__)


def _reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as with `| head`."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    # Whatever is still buffered has nowhere to go: Python would report that at its exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _usage_error(error: CycloptsError) -> str:
    """What is wrong with the command line, in one line."""
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):
        from .run import validation_message

        return validation_message(error.__cause__, error.argument.name if error.argument else "")
    if isinstance(error, MissingArgumentError) and error.argument and error.keyword is None:
        command = " ".join(["prefect-imageqa", *(error.command_chain or ())])
        return f"{error.argument.name} is missing: see {command} --help"
    if isinstance(error, UnusedCliTokensError):
        tokens = " ".join(map(repr, error.unused_tokens or ()))
        return f"unexpected {tokens}: repeat an option for each value, and quote what has spaces"
    return " ".join(str(error).split())
