"""The image column of a row -> image references, their bytes, and their identity."""

import base64
import binascii
import errno
import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from PIL import Image, ImageOps

from .errors import StoreError
from .filesystems import (
    AccessDeniedError,
    StoreUnavailableError,
    is_path,
    open_filesystem,
    store_errors,
)
from .records import ImageRef, Kind, RowError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20})://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
T = TypeVar("T")

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
    """Read an image column: a path, data URI, bytes, Hugging Face image, PIL image, or a list.

    Opens no file and asks no store; local paths are looked up.

    Returns:
        The images in order; none where the value is missing or empty.

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
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() != "s3":
        # Only the scheme is shown: the rest of a signed URL is a secret.
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"a {scheme[1].lower()}:// image is not fetched; "
            "save it to a file or to s3:// and give that path",
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
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in _PNG_MODES:
            upright = upright.convert("RGB")
        upright.save(encoded, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        raise RowError(Kind.IMAGE_BROKEN, f"a PIL image that cannot be encoded: {error}") from None
    return encoded.getvalue()


def read_image(ref: ImageRef, max_bytes: int) -> bytes:
    """Read the encoded image.

    Raises:
        RowError: it is larger than `max_bytes`, it cannot be read, or its store does not let
            anyone in now (connection).
    """
    data: bytes | None
    if ref.path is None:
        data = ref.data or b""
    elif ref.path.startswith("s3://"):
        # One byte more than allowed tells, and saves asking for the size first.
        data = _ask_s3(ref.path, lambda s3, key: _read_start(s3, key, max_bytes + 1))
    else:
        with _open_local(ref.path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= max_bytes else None
    if data is None or len(data) > max_bytes:
        raise _too_large(ref, max_bytes)
    return data


def image_id(ref: ImageRef, max_bytes: int) -> str:
    """Identify an image by its content; on S3 by the store's tag of it, without reading it.

    Returns:
        `sha256:<hex>`, or `etag:<tag>:<bytes>` for `s3://`, which takes one request.

    Raises:
        RowError: as `read_image` does.
    """
    if ref.path is None or not ref.path.startswith("s3://"):
        return f"sha256:{hashlib.sha256(read_image(ref, max_bytes)).hexdigest()}"
    info = _ask_s3(ref.path, lambda s3, key: s3.info(key))
    if info["type"] != "file":
        raise RowError(Kind.IMAGE_MISSING, f"{ref}: is a folder")
    if info["size"] > max_bytes:
        raise _too_large(ref, max_bytes)
    return f"etag:{info['ETag'].strip(chr(34))}:{info['size']}"


def _too_large(ref: ImageRef, max_bytes: int) -> RowError:
    reason = f"{ref} is larger than the limit of {max_bytes / 1e6:g} MB"
    return RowError(Kind.IMAGE_TOO_LARGE, reason)


@contextmanager
def _open_local(path: str) -> Iterator[io.BufferedReader]:
    """Open a regular file; a pipe or device put in its place must not block or flood us."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RowError(Kind.IMAGE_MISSING, f"{path}: is not a regular file")
            yield file
    except OSError as error:
        raise RowError(Kind.IMAGE_MISSING, f"{path}: {error.strerror or error}") from None


def _ask_s3(uri: str, ask: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    try:
        with store_errors(uri):
            return ask(*open_filesystem(uri))
    except (StoreUnavailableError, AccessDeniedError) as error:
        raise RowError(Kind.CONNECTION, str(error)) from None
    except StoreError as error:
        raise RowError(Kind.IMAGE_MISSING, str(error)) from None


def _read_start(s3: fsspec.AbstractFileSystem, key: str, count: int) -> bytes:
    try:
        data: bytes = s3.cat_file(key, start=0, end=count)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an empty object has no first byte to ask for
            return b""
        raise
    return data
