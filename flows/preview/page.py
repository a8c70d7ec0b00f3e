"""A preview as a page: one file that works offline.

As in a run's report, the template engine escapes everything that came from the dataset, the styles
or the model, and the page's content security policy allows only its own style and script.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...tasks.errors import StoreError
from ...tasks.object_store.store import ObjectStore
from ...tasks.reporting.pages import content_policy, finalize, load_template
from .cells import Preview, totals_of

_TEMPLATES = Path(__file__).parent / "templates"

_GENERATOR = b'<meta name="generator" content="prefect-imageqa preview">'
"""Marks a page as written by a preview: such a file may be replaced."""

_HEAD_BYTES = 2_000


def check_page(path: Path) -> None:
    """Refuse to replace a file that no preview has written.

    Raises:
        StoreError: there is such a file, or it cannot be read.
    """
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            is_own = _GENERATOR in file.read(_HEAD_BYTES)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
    if not is_own:
        raise StoreError(
            f"{path} already exists and was not written by a preview: choose another --html"
        )


def write_page(path: Path, page: bytes) -> None:
    """Write the page as a whole.

    Raises:
        StoreError: it cannot be written, or would replace a file that no preview has written.
    """
    check_page(path)
    ObjectStore(uri=str(path.absolute().parent)).write(path.name, page)


def render_page(preview: Preview, *, reloads: bool = False) -> bytes:
    """Render the page; `reloads` has it load itself again every two seconds, while it is read."""
    style = (_TEMPLATES / "preview.css").read_text("utf-8")
    script = (_TEMPLATES / "preview.js").read_text("utf-8") if reloads else ""
    values: dict[str, Any] = {
        "policy": content_policy(style, script),
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "preview": preview,
        "totals": totals_of(preview),
        "letters": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    }
    page = load_template("preview.html.j2", finalize, _TEMPLATES)
    return page.render(values).encode("utf-8", "replace")  # JSON can contain lone surrogates
