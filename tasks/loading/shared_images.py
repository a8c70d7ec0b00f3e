"""Rows of a benchmark's TSV file that give the index of another row in place of their image."""

from collections import OrderedDict
from collections.abc import Iterator

from ..records import Kind, Problem
from .json_formats import LocatedRecord
from .long_records import MAX_RECORD_BYTES

_MAX_INDEX_CHARACTERS = 64
"""A longer cell is an image in base64."""


def share_images(records: Iterator[LocatedRecord]) -> Iterator[LocatedRecord]:
    """Replace an index in the column `image` by the image of the row with it, as VLMEvalKit does.

    Only the last images are kept, up to the size of a record. Files without images in base64 are
    left as they are.
    """
    images: OrderedDict[str, str] = OrderedDict()
    size = 0
    for where, record in records:
        if isinstance(record, Problem) or not (record.get("index") and record.get("image")):
            yield where, record
            continue
        index, image = record["index"], record["image"]
        if len(image) > _MAX_INDEX_CHARACTERS:
            size += len(image) - len(images.pop(index, ""))
            images[index] = image
            while size > MAX_RECORD_BYTES:
                size -= len(images.popitem(last=False)[1])
            yield where, record
        elif image in images:
            yield where, {**record, "image": images[image]}
        elif images and image.isdecimal():
            reason = f"the image is that of the row with index {image}, which is not in the rows"
            message = f"{reason} shortly before; give each row its own image"
            yield where, Problem(Kind.BAD_ROW, message)
        else:
            yield where, record
