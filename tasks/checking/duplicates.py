"""Images that are there before, as copies or nearly so; and questions that repeat another one.

Two images are alike by the same content, or by `image_hashes`. Questions are compared in their
normal form, among all those about images that are alike.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count

import numpy as np
import pyarrow as pa

from .check import CheckedPair, Columns, ComputedCheck, Values
from .hashed_rows import HashRows, first_rows
from .image_hashes import Array, first_alike
from .texts import form_digest

COLUMNS: Columns = (
    pa.field("near_duplicate_image", pa.string()),
    pa.field("image_difference", pa.float64()),
    pa.field("duplicate_question", pa.string()),
    pa.field("question_share", pa.float64()),
)
"""The row whose image came first, such as "row 12", empty if it is this one; how much the colours
of both differ, from 0 (the same) to 4 of 255, null if it is this one; the pair about such an image
that asked the same before, such as "row 12, pair 0", or empty; and the share of all images that
are asked this question, from 0 to 1."""

_PAIR = np.dtype(
    [("row", "i8"), ("number", "i4"), ("subject", "i4"), ("form", "u8"), ("asked", "u8")]
)
"""A pair: its row, and its number there; the number of what it is about, a row's images or a row
without any; the digest of its question's normal form; and that with its options, and of a turn of a
dialogue, which depends on those before, with its place."""

_NO_IMAGES = "row "
"""Begins the name of what a pair is about that has no images."""


def check(hash_rows: HashRows) -> ComputedCheck:
    """Images and questions that repeat earlier ones.

    Rows that have the same images, by their paths or by their embedded content, are about one
    image, which is no duplicate of itself. Images that cannot be read are no result.

    Args:
        hash_rows: hashes the images of the rows that the pairs are about.
    """
    return ComputedCheck("duplicates", COLUMNS, partial(_judge, hash_rows))


def _repeated(rows: Mapping[str, int], hash_rows: HashRows) -> dict[str, tuple[str, float] | None]:
    """Which images are nearly those of an earlier row.

    Args:
        rows: the first row that has them, by the digest of the images; rows ascend.
        hash_rows: hashes the images of rows.

    Returns:
        By the digest of images that came before, the digest of the first ones, and how much the
        colours differ, from 0 to 4 of 255; None for those that cannot be read.
    """
    hashed = hash_rows(list(rows.values()))
    order = dict.fromkeys(image for images in hashed.images for image in images or ())
    alike, differences = first_alike(hashed.hashes, order)
    firsts: dict[tuple[int, ...], str] = {}
    found: dict[str, tuple[str, float] | None] = {}
    for digest, images in zip(rows, hashed.images, strict=True):
        if images is None:
            found[digest] = None
        elif images:
            first = firsts.setdefault(tuple(alike[list(images)].tolist()), digest)
            if first != digest:
                found[digest] = first, float(differences[list(images)].max())
    return found


def first_images(pairs: Iterable[CheckedPair], hash_rows: HashRows) -> dict[str, str]:
    """Digests of images that are nearly those of an earlier row, with the digest of the first."""
    repeated = _repeated(first_rows(pairs), hash_rows)
    return {digest: found[0] for digest, found in repeated.items() if found}


def _judge(hash_rows: HashRows, pairs: Callable[[], Iterable[CheckedPair]]) -> Iterator[Values]:
    numbers = defaultdict[str, int](count().__next__)
    read = np.fromiter((_read(checked, numbers) for checked in pairs()), _PAIR)
    _, first_pairs = np.unique(read["subject"], return_index=True)
    rows = dict(zip(numbers, read["row"][first_pairs].tolist(), strict=True))
    repeated = _repeated(
        {name: row for name, row in rows.items() if not name.startswith(_NO_IMAGES)}, hash_rows
    )
    images, classes = list[tuple[str | None, float | None]](), np.arange(len(numbers))
    for subject, name in enumerate(numbers):
        if name not in repeated:
            images.append(("", None))
        elif (found := repeated[name]) is None:
            images.append((None, None))
        else:
            first, difference = found
            images.append((f"row {rows[first]}", difference))
            classes[subject] = numbers[first]
    about = classes[read["subject"]]
    firsts, shares = _first_equal(about, read["asked"]), _shares(about, read["form"])
    subjects = read["subject"].tolist()
    for pair, (asked_by, subject) in enumerate(zip(firsts.tolist(), subjects, strict=True)):
        row, number = read["row"][asked_by], read["number"][asked_by]
        question = f"row {row}, pair {number}" if asked_by != pair else ""
        yield *images[subject], question, float(shares[pair])


def _read(checked: CheckedPair, numbers: Mapping[str, int]) -> tuple[int, ...]:
    pair = checked.pair
    form = asked = form_digest(pair.question)
    if pair.options or pair.turn:
        place = (f"row {checked.row}, pair {checked.number}",) if pair.turn else ()
        asked = form_digest(pair.question, (*pair.options, *place))
    subject = numbers[checked.images or f"{_NO_IMAGES}{checked.row}"]
    return checked.row, checked.number, subject, form, asked


def _first_equal(classes: Array, asked: Array) -> Array:
    """For each pair the first one of the same class that asked the same; 0 is the first pair."""
    order = np.lexsort((asked, classes))  # stable: equal ones stay in order
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(classes[order]) != 0) | (np.diff(asked[order]) != 0)
    first = np.empty(len(order), np.intp)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _shares(classes: Array, forms: Array) -> Array:
    """For each pair the share of all classes that are asked its form."""
    is_first = _first_equal(classes, forms) == np.arange(len(forms))
    _, kinds = np.unique(forms, return_inverse=True)
    counts = np.bincount(kinds[is_first], minlength=1)
    shares: Array = counts[kinds] / max(1, len(np.unique(classes)))
    return shares
