"""`prefect-imageqa preview`: what styles ask about a few rows, and what the model replies.

Its flags are those of `run` that decide what is asked, so that it asks what a run would.
"""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError
from rich.console import Console

from ...tasks.runs.parameters import Limits, RunParameters
from ..image_qa import image_qa
from ..preview.model import NO_ENDPOINT, UNNAMED
from ..preview.page import check_page
from ..preview.session import open_session
from ..preview.show import Views, print_requests, show_changes, show_once
from .options import Count, Flag
from .run import as_option, extra_body_problem, flow_parameters, validation_message, with_code

_LIMITS = Limits(server_wait=60, store_wait=60)
"""Somebody sits in front of a preview and waits."""

_LEFT_OUT = {"dataset", "output", "style", "max_rows", "limits", "caching", "exports", "pilot"}
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
        help="Go on until Ctrl-C: when a style file changes, ask again about what has changed in it"
    ),
]


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
    if problem := _usage_problem(parameters, dry_run=dry_run, watch=watch):
        print(f"prefect-imageqa: {problem}", file=sys.stderr)
        return 2
    try:
        requested = _requested(dataset, style or ["chat"], with_code(parameters))
    except ValidationError as error:
        print(f"prefect-imageqa: {validation_message(error)}", file=sys.stderr)
        return 2
    if not dry_run:
        check_page(html)
    views = Views(Console(markup=False, highlight=False), html)
    with open_session(requested, rows, dry_run=dry_run) as session:
        if dry_run:
            print_requests(session)
            if session.model.name == UNNAMED:
                note = f"keys and seeds are those of a model named {UNNAMED}: give --model"
                print(f"prefect-imageqa: {note}", file=sys.stderr)
        elif watch:
            show_changes(session, views)
        else:
            show_once(session, views)
    return 0


def _usage_problem(parameters: dict[str, Any], *, dry_run: bool, watch: bool) -> str:
    if dry_run and watch:
        return "give --dry-run or --watch, not both"
    if not dry_run and not parameters.get("endpoint"):
        return NO_ENDPOINT
    return extra_body_problem()


def _requested(dataset: str, styles: list[str], parameters: dict[str, Any]) -> list[RunParameters]:
    """The parameters of a run in each style."""
    names = parameters.get("endpoint") or []
    # A single value may be the name of a block.
    parameters = parameters | {"endpoint": names[0] if len(names) == 1 else names or None}
    bound = inspect.signature(image_qa.fn).bind(dataset, output="", limits=_LIMITS, **parameters)
    bound.apply_defaults()
    return [RunParameters(**{**bound.arguments, "style": style}) for style in dict.fromkeys(styles)]


def _options() -> list[inspect.Parameter]:
    """The command's own options, then those of the flow."""
    own = [
        option
        for option in inspect.signature(preview).parameters.values()
        if option.kind is not option.VAR_KEYWORD
    ]
    shared = {name: of for name, of in flow_parameters().items() if name not in _LEFT_OUT}
    return [*own, *map(as_option, shared.values())]


_, _, _DESCRIPTIONS = str(image_qa.fn.__doc__).partition("\n    Args:\n")
preview.__doc__ = f"{preview.__doc__}\n    Args:\n{_DESCRIPTIONS}"
_OPTIONS = _options()
preview.__signature__ = inspect.Signature(_OPTIONS)  # type: ignore[attr-defined]
preview.__annotations__ = {option.name: option.annotation for option in _OPTIONS}
