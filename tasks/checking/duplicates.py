"""Images that are there before, as copies or nearly so; and questions that repeat another one.

Two images are alike by the same content, or by `image_hashes`: copies in half the size or encoded
again are nearly all found, crops of 5 % mostly in photographs and rarely in drawings, and other
brightness never. Questions are compared in their normal form, among all those about images that are
alike.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from .check import CheckedPair, Columns, ComputedCheck, Values
from .hashed_rows import HashedRows, HashRows
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


def check(hash_rows: HashRows) -> ComputedCheck:
    """Images and questions that repeat earlier ones.

    Rows that have the same images, by their paths or by their embedded content, are about one
    image, which is no duplicate of itself. Images that cannot be read are no result.

    Args:
        hash_rows: hashes the images of the rows that the pairs are about.
    """
    return ComputedCheck("duplicates", COLUMNS, partial(_judge, hash_rows))


@dataclass
class _Pairs:
    """The pairs of a set, by column; 33 bytes each.

    Attributes:
        rows: row of each.
        numbers: number of each in its row.
        subjects: number of what each is about: a row's images, or a row without any.
        forms: digest of its question's normal form.
        asked: the same with its options; of a turn of a dialogue, which depends on those before,
            also with its place.
        first_rows: the first row about each subject.
        have_images: whether a subject is images.
    """

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    numbers: "array[int]" = field(default_factory=lambda: array("i"))
    subjects: "array[int]" = field(default_factory=lambda: array("i"))
    forms: "array[int]" = field(default_factory=lambda: array("Q"))
    asked: "array[int]" = field(default_factory=lambda: array("Q"))
    first_rows: list[int] = field(default_factory=list)
    have_images: list[bool] = field(default_factory=list)


def _judge(hash_rows: HashRows, pairs: Callable[[], Iterable[CheckedPair]]) -> Iterator[Values]:
    read = _read(pairs())
    wanted = [row for row, images in zip(read.first_rows, read.have_images, strict=True) if images]
    repeated = _repeated_images(read, hash_rows(wanted))
    classes = np.array(repeated.classes, np.int64)[np.array(read.subjects)]
    first_pair = _first_equal(classes, np.array(read.asked))
    shares = _shares(classes, np.array(read.forms))
    for pair, (subject, first) in enumerate(zip(read.subjects, first_pair.tolist(), strict=True)):
        question = ""
        if first != pair:
            question = f"row {read.rows[first]}, pair {read.numbers[first]}"
        image, difference = repeated.images[subject]
        yield image, difference, question, float(shares[pair])


def _read(pairs: Iterable[CheckedPair]) -> _Pairs:
    read, known = _Pairs(), dict[str, int]()
    for checked in pairs:
        name = checked.images or f"row {checked.row}"
        subject = known.setdefault(name, len(known))
        if subject == len(read.first_rows):
            read.first_rows.append(checked.row)
            read.have_images.append(bool(checked.images))
        pair = checked.pair
        read.rows.append(checked.row)
        read.numbers.append(checked.number)
        read.subjects.append(subject)
        form = form_digest(pair.question)
        own = (f"row {checked.row}, pair {checked.number}",) if pair.turn else ()
        others = (*pair.options, *own)
        read.forms.append(form)
        read.asked.append(form_digest(pair.question, others) if others else form)
    return read


@dataclass(frozen=True)
class _Repeated:
    """What is known of each subject of the pairs.

    Attributes:
        images: the values of the first two columns.
        classes: the first subject that it is alike, or itself.
    """

    images: Sequence[tuple[str | None, float | None]]
    classes: Sequence[int]


def _repeated_images(read: _Pairs, hashed: HashedRows) -> _Repeated:
    order = dict.fromkeys(image for images in hashed.images for image in images or ())
    alike, differences = first_alike(hashed.hashes, order)
    found: list[tuple[str | None, float | None]] = []
    classes: list[int] = []
    firsts: dict[tuple[int, ...], int] = {}
    of_rows = iter(hashed.images)
    for subject, has_images in enumerate(read.have_images):
        images = next(of_rows) if has_images else ()
        first = subject
        if images:
            first = firsts.setdefault(tuple(alike[list(images)].tolist()), subject)
        classes.append(first)
        if images is None:
            found.append((None, None))
        elif first == subject:
            found.append(("", None))
        else:
            difference = float(differences[list(images)].max())
            found.append((f"row {read.first_rows[first]}", difference))
    return _Repeated(found, classes)


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
