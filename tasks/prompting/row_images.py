"""The images of a row: those of its image column, and those of its conversation."""

from collections.abc import Sequence
from typing import Any

from ...serving.printable import printable
from ..images.references import ImageBase, image_refs
from ..loading.columns import Columns, read_value
from ..loading.conversations import ImageIndex, Turn
from ..records import ImageRef, Kind, Record, RowError
from .chat import asked_turns, turn_images


def row_images(
    record: Record,
    turns: Sequence[Turn],
    columns: Columns,
    base: ImageBase,
    max_images: int,
) -> tuple[ImageRef, ...]:
    """The images of a row, in the order in which a style numbers them.

    First those of the image column that have no place in the conversation, then those that have
    one, in its order. An image that the conversation has already is not sent twice, and one that
    belongs to an answer that is not asked for is not sent.

    Args:
        record: the row.
        turns: its conversation.
        columns: where its images are.
        base: what relative paths are resolved against.
        max_images: how many it may have.

    Raises:
        RowError: it has none, too many, or one that cannot be an image.
    """
    column, refs, places = columns.image, tuple[ImageRef, ...](), list[Any]()
    for turn in turns:
        images = turn_images(turn)
        if images and turn.role == "system":
            raise RowError(Kind.BAD_ROW, "an image in a system turn; move it to a turn of the user")
        places += images
    _check_count(len(places), max_images)
    if column is not None and not columns.has_embedded_images:
        refs = image_refs(read_value(record, column), base, max_images)
    is_plain = not places or (len(places) == len(refs) == 1 and places[0] is None)
    found = refs if is_plain else _placed(refs, places, turns, base)
    if column is not None and not found:
        raise RowError(Kind.NO_IMAGE, f"the row has no image in column {printable(column, 60)!r}")
    _check_count(len(found), max_images)
    return found


def _placed(
    refs: tuple[ImageRef, ...], places: Sequence[Any], turns: Sequence[Turn], base: ImageBase
) -> tuple[ImageRef, ...]:
    """The images of the column and those of the conversation's places, in order."""
    own = [_own_image(image, refs, base) for image in places]
    free = own.count(None)
    if len(refs) > free:
        refs = tuple(ref for ref in refs if ref not in own)
    unplaced = max(len(refs) - free, 0)
    upcoming = iter(refs[unplaced:])
    placed = [next(upcoming, None) if ref is None else ref for ref in own]
    asked = sum(map(len, map(turn_images, asked_turns(turns))))
    found = (*refs[:unplaced], *(ref for ref in placed[:asked] if ref is not None))
    return found or refs  # then the image of an answer is that of the question


def _check_count(images: int, limit: int) -> None:
    if images > limit:
        raise RowError(Kind.BAD_ROW, f"the row has {images} images, more than max_images ({limit})")


def _own_image(image: Any, refs: Sequence[ImageRef], base: ImageBase) -> ImageRef | None:
    """The image that a place in the conversation names; None for the next one of the column."""
    if not isinstance(image, ImageIndex):
        return None if image is None else _one_image(image, base)
    if not 0 <= image.index < len(refs):
        raise RowError(
            Kind.BAD_ROW,
            f"the conversation has image {image.index} (from 0), but the row has {len(refs)}",
        )
    return refs[image.index]


def _one_image(value: Any, base: ImageBase) -> ImageRef:
    refs = image_refs(value, base)
    if len(refs) != 1:
        raise RowError(Kind.BAD_ROW, f"an image in the conversation is {len(refs)} images")
    return refs[0]
