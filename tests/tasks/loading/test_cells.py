import io
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect_imageqa.tasks.loading.cells import parse_cell

TURNS = [
    {"from": "human", "value": 'It\'s "5"\n<image> ü'},
    {"from": "gpt", "value": None},
]


def as_csv_cell(value: Any) -> str:
    """The cell that pandas writes for a value."""
    frame = pd.DataFrame({"cell": pd.Series([value], dtype=object)})
    text = io.StringIO(frame.to_csv(index=False))
    return str(pd.read_csv(text, dtype=str, keep_default_na=False)["cell"][0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TURNS, TURNS),
        (np.array(TURNS, dtype=object), TURNS),
        (["a.png", "b c.png"], ["a.png", "b c.png"]),
        (np.array(["a.png", "b.png"]), ["a.png", "b.png"]),
        (np.array(["a.png", "b.png"], dtype=object), ["a.png", "b.png"]),
        ([np.str_("a"), np.float64(0.5), np.True_], ["a", 0.5, True]),
        ({"turns": np.array(TURNS, dtype=object)}, {"turns": TURNS}),
        ({"bytes": b"\x89PNG\r\n'\"", "path": None}, {"bytes": b"\x89PNG\r\n'\"", "path": None}),
        (np.array([{"bytes": b"\xff"}], dtype=object), [{"bytes": b"\xff"}]),
        ([True, False, float("nan"), 1, -2.5e-3], [True, False, None, 1, -2.5e-3]),
        (("a",), "('a',)"),
        ({1: [2]}, {"1": [2]}),
        (np.array([[1.0, 2.5], [3.0, 4.0]]), [[1.0, 2.5], [3.0, 4.0]]),
        ([], []),
        ({}, {}),
    ],
)
def test_what_pandas_writes_is_read_again(value: Any, expected: Any) -> None:
    assert parse_cell(as_csv_cell(value)) == expected


def test_json_is_read() -> None:
    assert parse_cell(' [{"from": "human", "value": "true \\u00fc"}]\n') == [
        {"from": "human", "value": "true ü"}
    ]
    assert parse_cell('{"image": null, "n": NaN}') == {"image": None, "n": None}
    assert parse_cell(f"['a', {2**70}]") == ["a", float(2**70)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images/a.png",
        "What is 'this'?",
        "[Music] a cat",
        "[Music]",
        "[a.png, b.png]",
        "{name}, hello",
        "{name}",
        "[not json",
        '["Yes"] or ["No"], which?',
        '"[1]"',
        "[/INST]",
        "[1] and [2]",
        "array of things",
    ],
)
def test_plain_text_is_left_alone(text: str) -> None:
    assert parse_cell(text) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[{'from': 'human', 'value': 'wha",
            "looks like a list, but the text at character 29 is not closed",
        ),
        ("[{'from': 'human', 'value': 'what?'", "looks like a list, but it is cut off"),
        ("['a.png', 'b.png'", "it is cut off"),
        ("{'bytes': b'\\x89', 'path': ", "looks like an object, but it is cut off"),
        ("[{'from': human}]", "unexpected 'human' at character 11"),
        ("[{'a': __import__('os').system('id')}]", "unexpected '__import__' at character 8"),
        ("['a' 'b' ... 'y' 'z']", r"numpy has left out items \(\.\.\.\)"),
        ("['a' 'b', 'c']", "at character 11"),
        ("{'a', 'b'}", "unexpected ','"),
        ("['a'] x ['b']", "unexpected 'x'"),
        ("[{'t': Timestamp('2026-01-01')}]", "unexpected 'Timestamp'"),
        ("['\\x1b[31m', \x1b[31m]", r"unexpected '\\\\x1b\[31m\]'"),
        (f"['a', {'[' * 200}{']' * 200}]", "nested more than 100 levels"),
        ('{"a": "b",, "c": 1}', "unexpected ','"),
    ],
)
def test_a_list_that_cannot_be_read_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_cell(text)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_a_long_cell_costs_little() -> None:
    image = {"bytes": bytes(range(256)) * 2000, "path": None}
    start = time.process_time()
    assert parse_cell(repr(image)) == image
    hostile = [
        "['" + "\\" * 300_000 + "]",
        "['a'," + "1" * 300_000 + "x]",
        "['a'," + "[" * 300_000 + "]",
        "[" + " " * 300_000 + "'a' x]",
        "['a', " + " " * 300_000 + "x]",
        "{'" + "a" * 300_000 + "}",
    ]
    for text in hostile:
        with pytest.raises(ValueError, match="looks like"):
            parse_cell(text)
    assert time.process_time() - start < 3
