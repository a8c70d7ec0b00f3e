"""Images of a dataset, as the exports name them: by name, and embedded ones by digest and size."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from PIL import Image

from ..images.base64_images import base64_image, data_uri_bytes
from ..images.references import encode_png, held_images
from ..loading.columns import Columns, image_value, read_value
from ..loading.conversations import ImageIndex, read_conversation
from ..records import Row, RowError

_DATA_URI = re.compile(r"data:[^,]{0,200};\s*base64\s*,", re.IGNORECASE)

_HEAD = 200
"""Characters that tell whether a text is an image in base64."""

_MIN_BASE64 = 40

DIGEST_LENGTH = 32
"""Hex digits of a digest of images: 128 bits."""


def image_names(row: Row, columns: Columns) -> list[str]:
    """Names of a row's images: paths and URLs as in the dataset.

    An embedded image has the name that the dataset gives it, or else one made of the row's
    WebDataset key or its position.
    """
    value = row.record.get(columns.image or "")
    if isinstance(value, str) and value[:1].isalnum() and not is_embedded(value):
        return [_encodable(value)]  # by far the most frequent
    try:
        return list(_names(image_value(row.record, columns), default_names(row)))
    except RowError:  # an answered row has no unreadable images
        return []


def images_digest(row: Row, columns: Columns) -> str:
    """Digest of a row's images, of the image column and the conversation, as the dataset has them.

    It is the same for the same paths and URLs, and for the same content where they are embedded;
    empty if there are none. By it an export knows the row again.
    """
    digest = hashlib.sha256()
    count = 0
    try:
        for image in _images(row, columns):
            digest.update(hashlib.sha256(_content(image)).digest())
            count += 1
    except RowError:  # an answered row has no unreadable images
        return ""
    return digest.hexdigest()[:DIGEST_LENGTH] if count else ""


def default_names(row: Row) -> Iterator[str]:
    """Names for the embedded images of a row that have none."""
    key = row.record.get("__key__")
    stem = key if isinstance(key, str) and key else f"row-{row.index:06d}"
    yield stem
    yield from (f"{stem}-{number}" for number in count(2))


def with_references(row: Row, columns: Columns) -> dict[str, Any]:
    """The record of a row, with the name, digest and size of embedded images in place of them."""
    record, names = dict(row.record), default_names(row)
    for name, value in record.items():
        of_image = name == columns.image
        only_images = of_image and not columns.has_embedded_images
        record[name] = _referenced(value, names if of_image else None, only_images=only_images)
    return record


def is_embedded(text: str) -> bool:
    """Whether a text of an image column is the image itself, not its path or URL."""
    head = text[:_HEAD].lstrip()
    if head[:5].lower() == "data:":
        return True
    # Hardly any path is long and has no dot, which base64 never has.
    return len(head) > _MIN_BASE64 and "." not in head and base64_image(head) is not None


def _images(row: Row, columns: Columns) -> Iterator[Any]:
    if not columns.has_embedded_images:
        yield from held_images(read_value(row.record, columns.image))
    for turn in read_conversation(read_value(row.record, columns.conversation)):
        for image in turn.images:
            if isinstance(image, ImageIndex):
                yield f"#{image.index}"
            else:
                yield from held_images(image)


def _content(image: Any) -> bytes:
    """What an image is known by: its path or URL, or its bytes."""
    if isinstance(image, str):
        text = image.strip()
        data = _data_of(text, only_images=True) if is_embedded(text) else None
        return text.encode(errors="surrogatepass") if data is None else data
    return encode_png(image) if isinstance(image, Image.Image) else bytes(image)


def _names(value: Any, defaults: Iterator[str]) -> Iterator[str]:
    if isinstance(value, str):
        if is_embedded(value):
            yield next(defaults)
        elif value.strip():
            yield _encodable(value)
    elif isinstance(value, Mapping):
        keys = ("path", "bytes", "image", "image_url", "url")
        yield from _names(next((value[key] for key in keys if value.get(key)), None), defaults)
    elif isinstance(value, bytes | bytearray | Image.Image):
        yield next(defaults)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item, defaults)


def _referenced(value: Any, names: Iterator[str] | None, *, only_images: bool) -> Any:
    """Replace embedded data anywhere in a value.

    Args:
        value: of a column.
        names: for data without a name of its own; None outside the image column.
        only_images: whether all its texts are images.
    """
    if isinstance(value, str):
        data = _data_of(value.strip(), only_images=only_images)
        return value if data is None else _reference(data, None, names)
    if isinstance(value, bytes | bytearray | Image.Image):
        return _reference(value, None, names)
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if isinstance(data, bytes | bytearray):
            return _reference(data, value.get("path"), names)
        return {
            key: _referenced(child, names, only_images=only_images) for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [_referenced(child, names, only_images=only_images) for child in value]
    return value


def _data_of(text: str, *, only_images: bool) -> bytes | None:
    """The image that a text embeds; None if it is another text."""
    try:
        if text[:5].lower() != "data:":
            return base64_image(text)
        # Other texts may begin with "data:" too.
        return data_uri_bytes(text) if only_images or _DATA_URI.match(text) else None
    except RowError:
        return None


def _reference(data: Any, name: Any, names: Iterator[str] | None) -> dict[str, Any]:
    if isinstance(data, Image.Image):
        data = encode_png(data)
    if not isinstance(name, str) or not name:
        name = next(names) if names else None
    reference = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return {"path": name, **reference} if name else reference


def _encodable(name: str) -> str:
    # A file name need not be valid UTF-8, but an Arrow string must be.
    return name if name.isascii() else name.encode(errors="replace").decode()
