"""Pairs about images that are also in a benchmark set, so that test sets stay out of training data.

Images decide, by the same content or alike as `image_hashes` says. A question that a benchmark asks
about another image is only reported: many are asked everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa

from .benchmarks import Benchmarks
from .check import CheckedPair, Columns, ComputedCheck, Values
from .hashed_rows import HashRows, first_rows
from .image_hashes import AlikeImages
from .texts import form_digest

COLUMNS: Columns = (
    pa.field("contamination", pa.string()),
    pa.field("contamination_difference", pa.float64()),
    pa.field("contamination_question", pa.bool_()),
    pa.field("benchmark_question", pa.string()),
)
"""Where a benchmark has the image, such as "mmbench.parquet[17]", or empty; how much the colours of
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


_Found = tuple[str | None, float | None, Sequence[int]]
"""Where the most similar image of a benchmark is, how much the colours differ, and the numbers of
all images there that are alike."""


def _judge(
    hash_rows: HashRows,
    read_benchmarks: Callable[[], Benchmarks],
    pairs: Callable[[], Iterable[CheckedPair]],
) -> Iterator[Values]:
    benchmarks = read_benchmarks()
    found = _find(first_rows(pairs()), hash_rows, benchmarks)
    for checked in pairs():
        form = form_digest(checked.pair.question)
        place, difference, images = found.get(checked.images, ("", None, ()))
        is_asked = any((image, form) in benchmarks.asked for image in images) if images else None
        yield place, difference, is_asked, benchmarks.questions.get(form, "")


def _find(
    rows: Mapping[str, int], hash_rows: HashRows, benchmarks: Benchmarks
) -> dict[str, _Found]:
    """What is found of each digest of images, if anything; None if one cannot be read."""
    known = AlikeImages(benchmarks.hashes)
    for image in benchmarks.places:
        known.add(image)
    hashed = hash_rows(list(rows.values()))
    found: dict[str, _Found] = {}
    for digest, images in zip(rows, hashed.images, strict=True):
        alike: dict[int, float] = {}
        for own in hashed.hashes[list(images or ())]:
            alike.update(zip(*(array.tolist() for array in known.find(own)), strict=True))
        if alike:
            nearest = min(alike, key=alike.__getitem__)
            found[digest] = benchmarks.places[nearest], alike[nearest], tuple(alike)
        elif images is None:
            found[digest] = None, None, ()
    return found
