"""Which pairs are right: by a column of the dataset, or by the scenes that its images show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...serving.demo_model.judge import Claim, Verdict, is_denial, judge_claims
from ...serving.demo_model.questions import parse_question
from ...serving.demo_model.scenes import Scene, Shape
from ..checking.declining import UNANSWERABLE
from ..errors import DatasetError
from ..storing.key_index import Array
from .evaluate import TruthOf


def column_truth(name: str) -> TruthOf:
    """The truth that a column says: true, false, or null where it is not known.

    Raises:
        DatasetError: once it is read, if it has other values.
    """

    def truth(batch: pa.RecordBatch) -> tuple[Array, Array, Sequence[str]]:
        values = batch.column(name)
        if not pa.types.is_boolean(values.type):
            raise DatasetError(
                f"column {name!r} is of type {values.type}: the truth of a pair is true or false"
            )
        known = pc.is_valid(values).to_numpy(zero_copy_only=False)
        right = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
        return known, right, [kind or "" for kind in batch.column("type").to_pylist()]

    return truth


def scene_truth(scenes: Sequence[Scene], samples: int = 1) -> TruthOf:
    """The truth about drawn scenes, which demo datasets have.

    Args:
        scenes: one for each record of the dataset.
        samples: rows that the run made of each record.

    Raises:
        DatasetError: once they are needed, if there are too few.
    """

    def truth(batch: pa.RecordBatch) -> tuple[Array, Array, Sequence[str]]:
        lines = batch.to_pylist()
        right: list[bool] = []
        kinds: list[str] = []
        for row, of_row in groupby(lines, itemgetter("row")):
            if row // samples >= len(scenes):
                raise DatasetError(
                    f"there are {len(scenes):,} scenes, and row {row:,} has pairs: give the "
                    "scenes of the run's dataset"
                )
            pairs = list(of_row)
            try:
                right += _judged(scenes[row // samples], pairs)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                raise DatasetError("the scenes are not those of a demo dataset") from None
            kinds += map(_kind, pairs)
        return np.ones(len(lines), bool), np.array(right, bool), kinds

    return truth


def read_scenes(path: str) -> list[Scene]:
    """Read the scenes that a demo dataset has beside it.

    Raises:
        DatasetError: there is no such file, or it has no scenes.
    """
    try:
        scenes = [
            tuple(Shape(**shape) for shape in scene)
            for scene in json.loads(Path(path).read_text("utf-8"))
        ]
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, RecursionError):
        raise DatasetError(
            f"{path} has no scenes: give the scenes.json of a demo dataset"
        ) from None
    return scenes


def _judged(scene: Scene, pairs: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    """Whether each pair of a row is right."""
    answered = [pair for pair in pairs if not _is_unanswerable(pair)]
    verdicts = iter(judge_claims(scene, list(map(_claim, answered))))
    for pair in pairs:
        if _is_unanswerable(pair):
            yield is_denial(scene, pair["question"] or "", pair["answer"] or "")
        else:
            yield next(verdicts) is Verdict.RIGHT


def _is_unanswerable(pair: Mapping[str, Any]) -> bool:
    style = (pair["style"] or "").partition("@")[0].partition("/")[0]
    return UNANSWERABLE in (style, pair["type"])


def _claim(pair: Mapping[str, Any]) -> Claim:
    options = tuple(option or "" for option in pair["options"] or ())
    return Claim(pair["question"] or "", pair["answer"] or "", options, pair["turn"] or 0)


def _kind(pair: Mapping[str, Any]) -> str:
    """The kind of its question, as the scenes know them; "other" for one that is none of them."""
    known = parse_question(pair["question"] or "")
    return known.kind.value if known else "other"
