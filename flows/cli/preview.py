"""`prefect-imageqa preview`: what styles ask about a few rows, and what the model replies.

Its flags are those of `run` that decide what is asked, so that it asks what a run would.
"""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from ...tasks.runs.parameters import Limits, RunParameters
from ..image_qa import image_qa
from ..preview.model import NO_ENDPOINT, UNNAMED
from ..preview.page import check_page
from ..preview.session import open_session
from ..preview.show import print_requests, show_changes, show_once
from .options import Count, Flag, UsageError
from .run import flow_command, with_code

_LIMITS = Limits(server_wait=60, store_wait=60)
"""Somebody sits in front of a preview and waits."""

_LEFT_OUT = ("output", "max_rows", "limits", "caching", "exports", "pilot", "checks")
"""Parameters of a run that decide nothing that is asked, or that a preview has in another form."""

Styles = Annotated[
    list[str] | None,
    Parameter(
        negative=(),
        help="Name of a style, path or s3:// URI of a style file, or a mix; once for every style "
        "to compare. By default chat, as in a run.",
    ),
]
Rows = Annotated[Count, Parameter(help="How many records of the dataset to show, from the first.")]
Page = Annotated[
    Path,
    Parameter(help="Where to write the page; a file that no preview has written is not replaced."),
]
DryRun = Annotated[
    Flag,
    Parameter(
        help="Print the exact request of every row as JSON, without its images, and ask for no "
        "reply. Row keys and seeds depend on the model: give --model, or --endpoint to look up "
        "its name."
    ),
]
Watch = Annotated[
    Flag,
    Parameter(
        help="Go on until Ctrl-C: when a style file changes, ask again about what has changed."
    ),
]


@flow_command(_LEFT_OUT)
def preview(
    dataset: str,
    /,
    *,
    style: Styles = None,
    rows: Rows = 6,
    html: Page = Path("preview.html"),
    dry_run: DryRun = False,
    watch: Watch = False,
    **parameters: Any,
) -> int:
    """Show what styles ask about the first rows and what the model replies, side by side.

    In the terminal, and as a page that works offline. A run with the same parameters asks exactly
    the same. Nothing is stored, except that page.

    Exit code 0: shown, even if no reply can be used; 1: styles, dataset or endpoint cannot be used;
    2: usage error.

    Example: prefect-imageqa preview qas.json --style short --style my.md --endpoint http://gpu-1:8000
    """
    if dry_run and watch:
        raise UsageError("give --dry-run or --watch, not both")
    if not dry_run and not parameters.get("endpoint"):
        raise UsageError(NO_ENDPOINT)
    requested = _requested(dataset, style or ["chat"], with_code(parameters))
    if not dry_run:
        check_page(html)
    console = Console(markup=False, highlight=False)
    with open_session(requested, rows, dry_run=dry_run) as session:
        if dry_run:
            print_requests(session)
            if session.model.name == UNNAMED:
                note = f"keys and seeds are those of a model named {UNNAMED}: give --model"
                print(f"prefect-imageqa: {note}", file=sys.stderr)
        elif watch:
            show_changes(session, console, html)
        else:
            show_once(session, console, html)
    return 0


def _requested(dataset: str, styles: list[str], parameters: dict[str, Any]) -> list[RunParameters]:
    """The parameters of a run in each style."""
    names = parameters.get("endpoint") or []
    # A single value may be the name of a block.
    parameters = parameters | {"endpoint": names[0] if len(names) == 1 else names or None}
    bound = inspect.signature(image_qa.fn).bind(dataset, output="", limits=_LIMITS, **parameters)
    bound.apply_defaults()
    return [RunParameters(**{**bound.arguments, "style": style}) for style in dict.fromkeys(styles)]
