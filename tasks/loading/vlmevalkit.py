"""VLMEvalKit's benchmark tables: shared images, and options in columns of their own."""

import string
from collections import OrderedDict
from collections.abc import Iterator

from ..records import Kind, Problem, Record
from .json_formats import LocatedRecord
from .long_records import MAX_RECORD_BYTES

_MAX_INDEX_CHARACTERS = 64
"""A longer cell is an image in base64."""

_MISSING = {"", "nan", "NaN"}
"""What pandas may write for an empty cell."""


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


def ask_choices(records: Iterator[LocatedRecord]) -> Iterator[LocatedRecord]:
    """Complete each question of a benchmark's table by its hint and options, as VLMEvalKit does.

    Such a table has the columns `index`, `question`, `A`, `B` and further letters, maybe `hint`.
    Other records are left as they are.
    """
    for where, record in records:
        if not isinstance(record, Problem) and "index" in record and record.get("question"):
            record = _with_choices(record)
        yield where, record


def _with_choices(record: Record) -> Record:
    options = {
        letter: record[letter]
        for letter in string.ascii_uppercase
        if not _is_missing(record.get(letter))
    }
    if not {"A", "B"} <= options.keys():
        return record
    hint = record.get("hint")
    lines = [
        *([] if _is_missing(hint) else [f"Hint: {hint}"]),
        f"Question: {record['question']}",
        "Options:",
        *(f"{letter}. {option}" for letter, option in options.items()),
        "Please select the correct answer from the options above.",
    ]
    return {**record, "question": "\n".join(lines)}


def _is_missing(cell: str | None) -> bool:
    return cell is None or cell.strip() in _MISSING
