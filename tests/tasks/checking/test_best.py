"""How users write the share of the pairs to keep, and where its bound is."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect_imageqa import ConditionError
from prefect_imageqa.tasks.checking.best import Best


@pytest.mark.parametrize(
    ("text", "best", "words"),
    [
        ("confidence=0.9", Best("confidence", 0.9), "best 90 % by confidence"),
        (" my score = .07 ", Best("my score", 0.07), "best 7 % by my score"),
        ("x=0.999", Best("x", 0.999), "best 99.9 % by x"),
    ],
)
def test_what_users_write(text: str, best: Best, words: str) -> None:
    assert Best.parse(text) == best == Best.parse(str(best))
    assert best.text == words


@pytest.mark.parametrize(
    "text", ["", "confidence", "=0.9", "x=", "x=1", "x=0", "x=-1", "x=90", "x=90%", "x=nan", "\0=2"]
)
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="is no share to keep: write a column, =, and"):
        Best.parse(text)


def test_a_column_must_hold_numbers() -> None:
    fields = [
        *(pa.field("confidence", pa.float64()), pa.field("judge_visual", pa.int8())),
        *(pa.field("form", pa.string()), pa.field("blind_answerable", pa.bool_())),
    ]
    Best("confidence", 0.5).check(fields)
    Best("judge_visual", 0.5).check(fields)
    for name in ("form", "blind_answerable", "confidenc"):
        with pytest.raises(ConditionError, match="those that there are: confidence, judge_visual"):
            Best(name, 0.5).check(fields)
    with pytest.raises(ConditionError, match="no such column of numbers; run with --check fluency"):
        Best("fluency", 0.5).check(fields)


@given(
    values=st.lists(st.sampled_from([-math.inf, -2.5, -1.0, 0.0, 1.0]), max_size=300),
    percent=st.integers(1, 99),
)
def test_all_above_the_bound_are_the_share_and_no_more_than_ties(
    values: list[float], percent: int
) -> None:
    bound = Best("x", percent / 100).bound(np.array(values, np.float64))
    wanted = -(-len(values) * percent // 100)  # rounded up
    assert sum(value > bound for value in values) < max(wanted, 1)
    assert sum(value >= bound for value in values) >= wanted
