"""Other spellings of a path that was written on another system."""

import re
import unicodedata
from urllib.parse import unquote

_DRIVE = re.compile(r"[A-Za-z]:[\\/]+")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


def is_windows_path(path: str) -> bool:
    """Whether a path was written on Windows."""
    return bool(_DRIVE.match(path)) or "\\" in path


def spellings(path: str) -> list[str]:
    r"""A path as it is written, and then as it may be meant.

    `images\a.jpg` and `C:\data\a.jpg` have slashes and no drive here, URLs write a space as `%20`,
    and copies from a Mac may have decomposed letters (Unicode NFD) where the table has composed
    ones.
    """
    found = [path]
    if is_windows_path(path):
        found.append(_DRIVE.sub("", path, count=1).replace("\\", "/"))
    if _ESCAPE.search(path):
        found.append(unquote(path, errors="replace"))
    if not all(text.isascii() for text in found):
        found += [unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in found]
    return [text for text in dict.fromkeys(found) if "\0" not in text]
