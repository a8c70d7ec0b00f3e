"""Pairs about images that are also in a benchmark set, so that test sets stay out of training data.

Images decide, by the same content or alike as `image_hashes` says. A question that a benchmark asks
about another image is only reported: many are asked everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from .benchmarks import Benchmarks
from .check import CheckedPair, Columns, ComputedCheck, Values
from .hashed_rows import HashRows
from .image_hashes import AlikeImages
from .texts import form_digest

COLUMNS: Columns = (
    pa.field("contamination", pa.string()),
    pa.field("contamination_difference", pa.float64()),
    pa.field("contamination_question", pa.bool_()),
    pa.field("benchmark_question", pa.string()),
)
"""Where a benchmark has the image, such as "mmbench.parquet:17", or empty; how much the colours of
both differ, from 0 (the same) to 4 of 255, and whether it asks the same question about it, both
null if it does not have the image; and the benchmark that asks this question about any image."""


def check(hash_rows: HashRows, read_benchmarks: Callable[[], Benchmarks]) -> ComputedCheck:
    """Images and questions of benchmark sets.

    Images that cannot be read are no result.

    Args:
        hash_rows: hashes the images of the rows that the pairs are about.
        read_benchmarks: reads what the sets have; called once, when pairs are judged.
    """
    return ComputedCheck("contamination", COLUMNS, partial(_judge, hash_rows, read_benchmarks))


@dataclass(frozen=True, slots=True)
class _Found:
    """Images of benchmarks that a row's images are alike.

    Attributes:
        place: where the most similar one is.
        difference: how much the colours differ.
        images: their numbers.
    """

    place: str
    difference: float
    images: Sequence[int]


def _judge(
    hash_rows: HashRows,
    read_benchmarks: Callable[[], Benchmarks],
    pairs: Callable[[], Iterable[CheckedPair]],
) -> Iterator[Values]:
    benchmarks = read_benchmarks()
    first_rows: dict[str, int] = {}
    for checked in pairs():
        if checked.images:
            first_rows.setdefault(checked.images, checked.row)
    found = _find(first_rows, hash_rows, benchmarks)
    for checked in pairs():
        form = form_digest(checked.pair.question)
        asked_by = benchmarks.questions.get(form, "")
        match found.get(checked.images, "") if checked.images else "":
            case None:
                yield None, None, None, asked_by
            case _Found() as images:
                is_asked = any((image, form) in benchmarks.asked for image in images.images)
                yield images.place, images.difference, is_asked, asked_by
            case _:
                yield "", None, None, asked_by


def _find(
    first_rows: dict[str, int], hash_rows: HashRows, benchmarks: Benchmarks
) -> dict[str, _Found | None]:
    """What is found of each set of images, if anything; None if one of them cannot be read."""
    known, contents = AlikeImages(benchmarks.hashes), dict[bytes, int]()
    for image in benchmarks.places:
        known.add(image)
        contents.setdefault(_content(benchmarks.hashes[image]), image)
    hashed = hash_rows(list(first_rows.values()))
    found: dict[str, _Found | None] = {}
    for name, images in zip(first_rows, hashed.images, strict=True):
        if images is None:
            found[name] = None
            continue
        alike: dict[int, float] = {}
        for own in hashed.hashes[list(images)]:
            alike.update(zip(*(array.tolist() for array in known.find(own)), strict=True))
            if (same := contents.get(_content(own))) is not None:
                alike[same] = 0.0
        if alike:
            nearest = min(alike, key=alike.__getitem__)
            found[name] = _Found(benchmarks.places[nearest], alike[nearest], tuple(alike))
    return found


def _content(image: Any) -> bytes:
    content: bytes = image["content"].tobytes()
    return content
