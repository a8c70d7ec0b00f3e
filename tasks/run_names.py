"""Names of flow runs and task runs in Prefect: human-readable, without secrets."""

from pathlib import Path
from typing import Any

from ..serving.endpoint import safe_url

_MAX_NAME_LENGTH = 60


def short_name(source: Any) -> str:
    """The last part of a path or URI, without credentials and query; else the type's name.

    A glob is shortened to its last two parts: `images/*.png`.
    """
    if not isinstance(source, str | Path):
        return type(source).__name__
    text = str(source)
    path = safe_url(text) if "://" in text else text
    parts = [part for part in path.replace("\\", "/").split("/") if part.strip()] or ["dataset"]
    count = 2 if "*" in parts[-1] else 1
    name = "".join(char if char.isprintable() else "_" for char in "/".join(parts[-count:]))
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"
