"""A page on which people say whether pairs are right, and the file that it saves.

The page is one file that works offline. It does not show what the checks say: people should not
know. The file has the verdicts, and a digest of each pair, so that they are not taken for verdicts
on other ones.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DatasetError
from ..exporting.row_pairs import pair_of_line
from ..object_store.store import ObjectStore
from ..records import QAPair
from ..storing.key_index import Array
from .check_columns import ResultColumn, result_columns
from .drawn_pairs import DrawnPairs
from .evaluate import TruthOf, bounded_columns
from .facts import options, truncated_pair
from .judged_pairs import judged_name, read_batches, read_schema
from .pages import TEMPLATES, content_policy, finalize, load_template
from .row_images import RowImages, SampledImage

_MAX_FILE_BYTES = 4 << 20
_COLUMNS = ("question", "answer", "type", "options", "correct", "turn", "language", "reasoning")
_MAX_BAND = 3
"""Pairs that fail at least so many checks are one band."""


@dataclass(frozen=True)
class ReviewPair:
    """A pair that people judge.

    Attributes:
        row: position of its row in the dataset, from 0.
        number: its number in the row, from 0.
        pair: the pair, with long texts truncated.
        digest: see `pair_digest`.
        images: of its row.
    """

    row: int
    number: int
    pair: QAPair
    digest: str
    images: tuple[SampledImage, ...] = ()


def sample_pairs(
    store: ObjectStore,
    count: int,
    seed: int,
    checks: Sequence[str] | None = None,
    images: RowImages | None = None,
) -> list[ReviewPair]:
    """Draw pairs of an output, as many of those that fail no check, one, two, or more.

    Args:
        store: the output.
        count: how many pairs to draw.
        seed: another one draws others.
        checks: names of those that were made; by default any that the columns show.
        images: of the rows; None for pairs without images.

    Raises:
        ObjectCorruptedError: a file is corrupted.
        StoreError: a file cannot be read.
    """
    name = judged_name(store)
    columns = bounded_columns(store, result_columns(read_schema(store, name), checks))
    drawn = DrawnPairs(count, _review_pair, seed)
    names = [*_COLUMNS, *(column.name for column in columns)]
    for batch in read_batches(store, name, names):
        drawn.add(batch, _bands(batch, columns))
    pairs = drawn.result()
    shown = images.of(dict.fromkeys(pair.row for pair in pairs)) if images else {}
    return [replace(pair, images=tuple(shown.get(pair.row, ()))) for pair in pairs]


def render_review(pairs: Sequence[ReviewPair], output: str) -> bytes:
    """The page.

    Args:
        pairs: to judge.
        output: name of the output.
    """
    style = "".join((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "review.css"))
    script = (TEMPLATES / "review.js").read_text("utf-8")
    page = load_template("review.html.j2", finalize=finalize).render(
        policy=content_policy(style, script),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        output=output,
        pairs=pairs,
        options=options,
    )
    return page.encode("utf-8", "replace")


class _Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    row: int
    pair: int
    digest: str
    verdict: Literal["right", "wrong", "unsure"]


class _Review(BaseModel):
    verdicts: list[_Verdict]


def review_truth(path: str) -> TruthOf:
    """The truth that people have said; of pairs that they were not sure about it is not known.

    Raises:
        DatasetError: there is no such file, it is none that the page saves, or, once it is read,
            it is about other pairs.
    """
    verdicts = {(each.row, each.pair): each for each in _read(path).verdicts}

    def truth(batch: pa.RecordBatch) -> tuple[Array, Array, Sequence[str]]:
        known, right = np.zeros(len(batch), bool), np.zeros(len(batch), bool)
        places = zip(batch.column("row").to_pylist(), batch.column("pair").to_pylist(), strict=True)
        for number, place in enumerate(places):
            verdict = verdicts.get(place)
            if verdict is None:
                continue
            [line] = batch.slice(number, 1).to_pylist()
            if pair_digest(line) != verdict.digest:
                raise DatasetError(
                    f"{path} is about other pairs: pair {place[1]} of row {place[0]} has changed"
                )
            known[number] = verdict.verdict != "unsure"
            right[number] = verdict.verdict == "right"
        return known, right, [kind or "" for kind in batch.column("type").to_pylist()]

    return truth


def pair_digest(line: Mapping[str, Any]) -> str:
    """Digest of what people judge of a pair."""
    texts = [line["question"], line["answer"], line["options"]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _read(path: str) -> _Review:
    try:
        with Path(path).open("rb") as file:
            return _Review.model_validate_json(file.read(_MAX_FILE_BYTES))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None
    except ValidationError:
        raise DatasetError(f"{path} has no verdicts: give a file that the page saved") from None


def _review_pair(batch: pa.RecordBatch, number: int) -> ReviewPair:
    [line] = batch.slice(number, 1).to_pylist()
    pair = truncated_pair(pair_of_line(line))
    return ReviewPair(line["row"], line["pair"], pair, pair_digest(line))


def _bands(batch: pa.RecordBatch, columns: Sequence[ResultColumn]) -> Mapping[str, Array]:
    """Which pairs fail no check, one, two, or more."""
    failed = np.zeros(len(batch), np.int64)
    for column in columns:
        judged, passed = column.outcomes(batch.column(column.name))
        failed += judged & ~passed
    failed = np.minimum(failed, _MAX_BAND)
    return {str(band): failed == band for band in range(_MAX_BAND + 1)}
