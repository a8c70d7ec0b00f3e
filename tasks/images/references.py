"""The image column of a row -> references to images that may be read."""

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

from ..object_store.filesystems import is_encodable
from ..records import ImageRef, Kind, RowError
from .decoding import upright
from .web_addresses import display_url, parse_image_url

# A file's name may contain a colon; but file:/etc/passwd is a URL too.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20})://|(file|https?):", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

_MAX_NESTING = 8
"""Nested lists in an image column; deeper nesting is surely a mistake."""


@dataclass(frozen=True, slots=True)
class ImageBase:
    """Where relative image paths are looked up.

    Attributes:
        folder: the dataset's folder, local or an `s3://` URI; None for a DataFrame. Paths of a
            local dataset are also looked up in the working directory.
        image_root: the only folder that images may come from, if given.
    """

    folder: str | None = None
    image_root: str | None = None


def image_refs(value: Any, base: ImageBase) -> tuple[ImageRef, ...]:
    """Parse an image column: path, URL, data URI, bytes, Hugging Face or PIL image, or a list.

    Opens no file and contacts no server; local paths are checked for existence.

    Returns:
        The images in order; empty if the value is missing or empty.

    Raises:
        RowError: the value is not an image reference (bad_row), the path does not exist
            (image_missing), or it must not be read (image_refused).
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
        return [ImageRef(data=encode_png(value))]
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
    if not is_encodable(text):
        raise RowError(Kind.BAD_ROW, f"{_short(text)} is not a path")
    scheme = _scheme(text)
    if scheme in {"http", "https"}:
        return _web_ref(text, base)
    if scheme not in {"", "s3"}:
        # Show only the scheme: the rest of a signed URL is a secret.
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{scheme}:// images are not fetched; give a local path, or an http(s):// or s3:// URL",
        )
    if scheme:
        text = f"s3://{text[5:]}"
    if base.image_root is not None:
        path = _inside_root(text, base.image_root)
    else:
        path = text if scheme else _find(text, base.folder)
    if not is_encodable(path):
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
            f"{display_url(url)} is not inside the image root {base.image_root}",
        )
    return ImageRef(path=str(parse_image_url(url)))


def _find(path: str, folder: str | None) -> str:
    """Look up a path in the dataset's folder, then in the working directory."""
    if folder is not None and folder.startswith("s3://") and not path.startswith("/"):
        return _join_s3(folder, path)
    folders = [str(Path.cwd())] if folder is None else [folder, str(Path.cwd())]
    for parent in folders:
        if _is_file(candidate := str(Path(parent, path))):
            return candidate
    where = "" if path.startswith("/") else f" in {' or '.join(dict.fromkeys(folders))}"
    raise RowError(Kind.IMAGE_MISSING, f"there is no file {_short(path)}{where}")


def _join_s3(folder: str, path: str) -> str:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    key = posixpath.normpath(posixpath.join(prefix, path))
    if key.startswith(".."):
        raise RowError(Kind.IMAGE_REFUSED, f"{_short(path)} leads out of the bucket {bucket}")
    return f"s3://{bucket}/{key}"


def _inside_root(path: str, root: str) -> str:
    if root.startswith("s3://"):
        uri = path if path.startswith("s3://") else f"{root.rstrip('/')}/{path}"
        escapes = path.startswith("/") or ".." in path.split("/")
        if escapes or not uri.startswith(f"{root.rstrip('/')}/"):
            raise _outside(path, root)
        return uri
    if path.startswith("s3://"):
        raise _outside(path, root)
    try:
        # Resolve links before the check, not after it.
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
    """Untrusted text, made safe for a one-line message."""
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _outside(path: str, root: str) -> RowError:
    return RowError(Kind.IMAGE_REFUSED, f"{_short(path)} is not inside the image root {root}")


def _data_uri_bytes(uri: str) -> bytes:
    head = _DATA_URI.match(uri)
    if head is None:
        raise RowError(Kind.BAD_ROW, "a data URI must have the form data:image/...;base64,...")
    try:
        data = base64.b64decode("".join(uri[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(Kind.BAD_ROW, "a data URI with invalid base64") from None
    if not data:
        raise RowError(Kind.BAD_ROW, "a data URI without data")
    return data


def encode_png(image: Image.Image) -> bytes:
    """Encode a PIL image losslessly, and upright, since its EXIF orientation would be lost."""
    encoded = io.BytesIO()
    try:
        shown = upright(image)
        if shown.mode not in _PNG_MODES:
            shown = shown.convert("RGB")
        shown.save(encoded, "PNG", compress_level=1)
    except Exception as error:  # of any type, if it was opened from a corrupted file
        raise RowError(Kind.IMAGE_BROKEN, f"a PIL image that cannot be encoded: {error}") from None
    return encoded.getvalue()
