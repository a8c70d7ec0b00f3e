"""Images written as base64 text, with or without `data:` before it."""

import base64
import binascii
import re
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from ..records import Kind, RowError
from .formats import image_format

_ALPHABET = re.compile(r"[A-Za-z0-9+/_\-\s]*+={0,2}\s*")
_CHECKED = 200
"""Characters: no path has so many without a dot by chance. Decoding checks the others."""

_MIN_LENGTH = 60
"""Characters: no image is smaller, and few paths without a dot are longer."""

_HEAD = 24
"""Characters that hold any format's signature; a multiple of 4."""

_TO_STANDARD = str.maketrans("-_", "+/")

_LARGE = 1 << 20

_FORM = "a data URI must have the form data:image/...;base64,..."


def base64_image(text: str) -> bytes | None:
    """The image in a base64 text; None if the text is something else, such as a path.

    Raises:
        RowError: BAD_ROW: it starts like an image but cannot be decoded.
    """
    if len(text) < _MIN_LENGTH or not _ALPHABET.fullmatch(text[:_CHECKED]):
        return None
    if not _starts_like_image(text):
        return None
    return _decoded(text, "an image in base64")


def data_uri_bytes(uri: str) -> bytes:
    """The content of a base64 `data:` URI, also of one that is not written quite right.

    Raises:
        RowError: BAD_ROW.
    """
    head, comma, body = uri.partition(",")
    if "%" in body[:_HEAD] or "%" in body[-_HEAD:]:
        body = unquote_to_bytes(body).decode("latin-1")
    body = body.strip()
    if not comma or not ("base64" in head.lower() or _starts_like_image(body)):
        raise RowError(Kind.BAD_ROW, _FORM)
    data = _decoded(body, "a data URI")
    if not data:
        raise RowError(Kind.BAD_ROW, "a data URI without data")
    return data


def _starts_like_image(text: str) -> bool:
    head = text[:_HEAD].translate(_TO_STANDARD)
    try:
        return image_format(base64.b64decode(head, validate=True)) is not None
    except (binascii.Error, ValueError):
        return False


def _decoded(text: str, what: str) -> bytes:
    """Decode base64 of either alphabet, with white space and without padding."""
    return _decode_again(text, what) if len(text) > _LARGE else _decode(text, what)


@lru_cache(maxsize=2)
def _decode_again(text: str, what: str) -> bytes:
    """The same for a large image: the rows of several questions share it, and so its bytes."""
    return _decode(text, what)


def _decode(text: str, what: str) -> bytes:
    with suppress(ValueError):
        return binascii.a2b_base64(text, strict_mode=True)  # most are written right
    text = "".join(text.split()).translate(_TO_STANDARD).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(Kind.BAD_ROW, f"{what} with invalid base64") from None
