"""Shows previews: once, or again whenever a style's file has changed."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ...tasks.errors import ImageQAError
from .cells import Preview
from .exact_request import request_of
from .page import render_page, write_page
from .session import AskedStyle, Session
from .terminal import print_preview

_POLL_SECONDS = 0.5
_REMOTE_POLL_SECONDS = 5.0
"""The same where a style is on S3: every look is a request."""


def print_requests(session: Session) -> None:
    """Print the request of every row in every style, as JSON, without asking for replies."""
    for style in session.rendered():
        settings = session.generation_settings(style)
        for prompt in style.prompts:
            request = request_of(prompt, session.model.name, settings)
            print(json.dumps(request, indent=2, ensure_ascii=False))


def show_once(session: Session, console: Console, page: Path) -> None:
    """Ask the model, and show its replies in the terminal and on the page."""
    _show(_asked(session, session.rendered()), console, page)


def show_changes(session: Session, console: Console, page: Path) -> None:
    """Show a preview now, and again whenever its prompts have changed, until Ctrl-C.

    A style that is broken for the moment is reported, and looked at again.
    """
    remote = any("s3://" in str(each.style) for each in session.requested)
    interval = _REMOTE_POLL_SECONDS if remote else _POLL_SECONDS
    shown: Preview | None = None
    try:
        for styles in _changes(session, interval):
            if isinstance(styles, ImageQAError):
                print(f"prefect-imageqa: {styles}", file=sys.stderr)
                continue
            shown = _asked(session, styles)
            _show(shown, console, page, reloads=True)
            print("watching the styles; Ctrl-C ends", file=sys.stderr)
    except KeyboardInterrupt:
        if shown is not None:
            write_page(page, render_page(shown))


def _changes(session: Session, interval: float) -> Iterator[Sequence[AskedStyle] | ImageQAError]:
    """The styles with their prompts, or why they cannot be used, whenever that has changed."""
    last: object = None
    while True:
        try:
            styles = session.rendered()
            now: object = [
                (prompt.key, prompt.problem) for style in styles for prompt in style.prompts
            ]
            found: Sequence[AskedStyle] | ImageQAError = styles
        except ImageQAError as error:
            now, found = str(error), error
        if now != last:
            last = now
            yield found
        sleep(interval)


def _asked(session: Session, styles: Sequence[AskedStyle]) -> Preview:
    with _waiting(session, session.count_unasked(styles)):
        return session.preview(styles)


def _show(preview: Preview, console: Console, page: Path, *, reloads: bool = False) -> None:
    if console.is_terminal and reloads:
        console.clear()
    print_preview(preview, console)
    write_page(page, render_page(preview, reloads=reloads))
    print(f"page: {page}", file=sys.stderr)


@contextmanager
def _waiting(session: Session, rows: int) -> Iterator[None]:
    """Show on a terminal how many replies there are, and what is waited for."""
    console, client = Console(stderr=True, markup=False), session.model.client
    if client is None or not console.is_terminal:
        yield
        return
    stats, before = client.stats, client.stats.completions
    spinner = Spinner("dots")

    def render() -> Spinner:
        done = f"asking {client.model} about {rows} rows: {stats.completions - before} replies"
        spinner.update(text=Text("\n".join([done, *stats.notes])))
        return spinner

    with Live(get_renderable=render, console=console, refresh_per_second=8, transient=True):
        yield
