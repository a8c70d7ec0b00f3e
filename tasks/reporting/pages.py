"""How a page is rendered: escaped, without characters that hide, under a strict content policy."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ...serving.printable import INVISIBLE

TEMPLATES = Path(__file__).parent / "templates"

_INVISIBLE = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{INVISIBLE}]")
"""Control characters except tab and line ends, and those that hide in a text."""


def load_template(name: str, finalize: Callable[[Any], Any], folder: Path = TEMPLATES) -> Template:
    """Load a template whose values go through `finalize`, and then, in HTML, are escaped."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=name.endswith(".html.j2"),
        finalize=finalize,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def strip_invisible(text: str) -> str:
    """Remove control, zero-width and text-direction characters."""
    return _INVISIBLE.sub("", text)


def finalize(value: Any) -> Any:
    """A value of an HTML template without invisible characters; our own markup as it is."""
    return value if isinstance(value, Markup) else strip_invisible(str(value))


def content_policy(style: str, script: str) -> str:
    """The content security policy: embedded images, and only our style and script, by digest."""
    digests = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for text in (style, script)
    )
    allowed = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
