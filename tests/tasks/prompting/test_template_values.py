import datetime
import decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from prefect_imageqa.tasks.prompting.template_values import plain_value
from prefect_imageqa.tasks.records import RowError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a cat", "a cat"),
        (3, 3),
        (True, True),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        (np.int64(3), 3),
        (np.array(["a", "b"]), ["a", "b"]),
        ({"a": ("b", 1), 2: None}, {"a": ["b", 1], "2": None}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (pd.Timestamp("2026-01-02"), "2026-01-02 00:00:00"),
        (decimal.Decimal("1.50"), "1.50"),
    ],
    ids=str,
)
def test_columns_are_plain_data(value: Any, expected: Any) -> None:
    assert plain_value("a", value) == expected


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x89PNG", "holds an image"),
        (bytearray(b"x"), "holds an image"),
        ({"bytes": b"\x89PNG", "path": None}, "holds an image"),
        ([Image.new("RGB", (1, 1))], "holds an image"),
        ("data:image/png;base64,iVBORw0KGgo=", "holds an image"),
        ("x" * 100_001, "is too long"),
        ({"x" * 100_001: 1}, "is too long"),
        (["x"] * 10_001, "is too long"),
        ([["x" * 20_000]] * 5, "is too long"),
        (np.zeros(200_000), "which is no text"),
        (nested(30), "is too long"),
        (object(), "holds a object, which is no text"),
    ],
    ids=[
        *("bytes", "bytearray", "hugging face", "pillow", "data URI", "long text", "long key"),
        *("many items", "sum", "array", "deep", "object"),
    ],
)
def test_what_does_not_belong_into_a_prompt_is_named(value: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        plain_value("my column", value)
    assert str(caught.value).startswith("column 'my column' ")
    assert reason in str(caught.value)
