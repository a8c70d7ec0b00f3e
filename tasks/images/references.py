"""The image column of a row -> image references: what it names, if that may be read."""

import base64
import binascii
import io
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..object_store.filesystems import is_path
from ..records import ImageRef, Kind, RowError
from .pixels import upright
from .web_addresses import shown, web_url

# A colon alone may stand in a file's name; but file:/etc/passwd is a URL too.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20})://|(file|https?):", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

_MAX_NESTING = 8
"""Lists in lists in an image column; nobody means more."""


@dataclass(frozen=True, slots=True)
class ImageBase:
    """What relative image paths are tried against.

    Attributes:
        folder: where the dataset lies, a local folder or `s3://` URI; None for a DataFrame. A
            local dataset's paths are also tried against the working directory.
        image_root: the only folder images may come from, where it is given.
    """

    folder: str | None = None
    image_root: str | None = None


def image_refs(value: Any, base: ImageBase) -> tuple[ImageRef, ...]:
    """Read an image column: path, URL, data URI, bytes, Hugging Face or PIL image, or a list.

    Opens no file and asks no server; local paths are looked up. Gives the images in order, none
    where the value is missing or empty.

    Raises:
        RowError: a value that is no image reference (bad_row), a path that exists nowhere
            (image_missing), or one that is not read on purpose (image_refused).
    """
    return tuple(_refs(value, base, 0))


def _refs(value: Any, base: ImageBase, depth: int) -> list[ImageRef]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return [_text_ref(value.strip(), base)]
    if isinstance(value, bytes | bytearray):
        return [ImageRef(data=bytes(value))] if value else []
    if isinstance(value, Image.Image):
        return [ImageRef(data=png_of(value))]
    if isinstance(value, Mapping) and not {"bytes", "path"}.isdisjoint(value):
        return _refs(value.get("bytes") or value.get("path"), base, depth + 1)
    if isinstance(value, Sequence) and depth < _MAX_NESTING:
        return [ref for item in value for ref in _refs(item, base, depth + 1)]
    raise RowError(
        Kind.BAD_ROW,
        f"the image column holds a {type(value).__name__}; "
        "give a path, a list of paths, a data URI, or image bytes",
    )


def _text_ref(text: str, base: ImageBase) -> ImageRef:
    if text[:5].lower() == "data:":
        return ImageRef(data=_data_uri_bytes(text))
    if not is_path(text):
        raise RowError(Kind.BAD_ROW, f"{_short(text)} is not a path")
    scheme = _scheme(text)
    if scheme in {"http", "https"}:
        return _web_ref(text, base)
    if scheme not in {"", "s3"}:
        # Only the scheme is shown: the rest of a signed URL is a secret.
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"a {scheme}:// image is not fetched; give a path without it, or an http(s):// "
            "or s3:// URL",
        )
    if scheme:
        text = f"s3://{text[5:]}"
    if base.image_root is not None:
        path = _inside_root(text, base.image_root)
    else:
        path = text if scheme else _find(text, base.folder)
    if not is_path(path):
        raise RowError(Kind.BAD_ROW, f"{_short(text)} is not a path")
    return ImageRef(path=path)


def _scheme(text: str) -> str:
    """The scheme in lower case; empty for a local path."""
    match = _SCHEME.match(text)
    return (match[1] or match[2]).lower() if match else ""


def _web_ref(url: str, base: ImageBase) -> ImageRef:
    if base.image_root is not None:
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{shown(url)} is not inside the image root {base.image_root}",
        )
    return ImageRef(path=str(web_url(url)))


def _find(path: str, folder: str | None) -> str:
    """Look for a path below the dataset's folder, then in the working directory."""
    if folder is not None and folder.startswith("s3://") and not path.startswith("/"):
        return _join_s3(folder, path)
    places = [str(Path.cwd())] if folder is None else [folder, str(Path.cwd())]
    for place in places:
        if _is_file(candidate := str(Path(place, path))):
            return candidate
    where = "" if path.startswith("/") else f" in {' or '.join(dict.fromkeys(places))}"
    raise RowError(Kind.IMAGE_MISSING, f"there is no file {_short(path)}{where}")


def _join_s3(folder: str, path: str) -> str:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    key = posixpath.normpath(posixpath.join(prefix, path))
    if key.startswith(".."):
        raise RowError(Kind.IMAGE_REFUSED, f"{_short(path)} leads out of the bucket {bucket}")
    return f"s3://{bucket}/{key}"


def _inside_root(path: str, root: str) -> str:
    if root.startswith("s3://"):
        whole = path if path.startswith("s3://") else f"{root.rstrip('/')}/{path}"
        outside = path.startswith("/") or ".." in path.split("/")
        if outside or not whole.startswith(f"{root.rstrip('/')}/"):
            raise _outside(path, root)
        return whole
    if path.startswith("s3://"):
        raise _outside(path, root)
    try:
        # Links are followed before the check, not after it.
        home = Path(root).expanduser().resolve()
        found = (home / path).resolve()
    except (OSError, RuntimeError, ValueError):
        raise RowError(Kind.BAD_ROW, f"{_short(path)} is not a path") from None
    if not found.is_relative_to(home):
        raise _outside(path, root)
    if not _is_file(str(found)):
        raise RowError(Kind.IMAGE_MISSING, f"there is no file {_short(path)} in {root}")
    return str(found)


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises on a name that is too long)


def _short(text: str) -> str:
    """A stranger's text, fit for one line."""
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _outside(path: str, root: str) -> RowError:
    return RowError(Kind.IMAGE_REFUSED, f"{_short(path)} is not inside the image root {root}")


def _data_uri_bytes(uri: str) -> bytes:
    head = _DATA_URI.match(uri)
    if head is None:
        raise RowError(Kind.BAD_ROW, "a data URI must read data:image/...;base64,...")
    try:
        data = base64.b64decode("".join(uri[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(Kind.BAD_ROW, "a data URI whose base64 is broken") from None
    if not data:
        raise RowError(Kind.BAD_ROW, "a data URI without data")
    return data


def png_of(image: Image.Image) -> bytes:
    """Encode a PIL image without loss; upright, as its EXIF orientation would not be kept."""
    encoded = io.BytesIO()
    try:
        shown = upright(image)
        if shown.mode not in _PNG_MODES:
            shown = shown.convert("RGB")
        shown.save(encoded, "PNG", compress_level=1)
    except Exception as error:  # of any type, where it was opened from a corrupted file
        raise RowError(Kind.IMAGE_BROKEN, f"a PIL image that cannot be encoded: {error}") from None
    return encoded.getvalue()
