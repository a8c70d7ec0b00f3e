"""How many pairs of a type, an answer or an image are kept, and which."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect_imageqa.tasks.checking.balance import Cap, groups_of, left_out, order_of


@pytest.mark.parametrize(
    ("text", "column", "limit"),
    [
        ("type=0.3", "type", 0.3),
        (" image = 5 ", "image", 5),
        ("answer=1e-3", "answer", 0.001),
        ("answer=1", "answer", 1),
    ],
)
def test_a_limit_as_users_write_it(text: str, column: str, limit: float) -> None:
    cap = Cap.parse(text)
    assert (cap.column, cap.limit) == (column, limit)
    assert Cap.parse(str(cap)) == cap


@pytest.mark.parametrize(
    "text",
    [
        *("", "type", "type=", "=0.3", "question=5", "type=0", "type=0.0", "type=1.0", "type=1.5"),
        *("type=-1", "type=x", "type=nan", "type=inf", "type=0.3=5", "Type=5", "type=" + "9" * 99),
        *("type=²", "x" * 10_000),
    ],
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="is no limit") as raised:
        Cap.parse(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def left(caps: list[Cap], columns: list[list[str]], seed: int = 0) -> list[int]:
    """Numbers of the caps that leave pairs out; the pairs are named by their position."""
    order = order_of(seed, ((f"{number:032x}", 0) for number in range(len(columns[0]))))
    found: list[int] = left_out(caps, list(map(groups_of, columns)), order).tolist()
    return found


def test_a_share_is_one_of_what_is_kept_in_the_end() -> None:
    answers = ["yes"] * 60 + ["no"] * 20 + ["red"] * 20
    kept = [
        answer
        for answer, by in zip(answers, left([Cap("answer", 0.4)], [answers]), strict=True)
        if by < 0
    ]
    assert Counter(kept) == {"yes": 26, "no": 20, "red": 20}  # 26 of 66 are 39.4 %, 27 of 67 40.3 %


def test_a_number_is_a_limit_for_each() -> None:
    by = left([Cap("image", 5)], [["a"] * 9 + ["b"] * 3])
    assert (by.count(0), by[9:]) == (4, [-1] * 3)


def test_pairs_without_a_value_are_not_limited() -> None:
    types = [""] * 10 + ["count"] * 10
    by = left([Cap("type", 0.3)], [types])
    assert by[:10] == [-1] * 10
    assert by[10:].count(-1) == 4  # of 14: 28.6 %; 5 of 15 were a third


def test_another_seed_draws_other_pairs_and_more_pairs_hardly_change_the_choice() -> None:
    few, many = ["a"] * 1000, ["a"] * 1010
    first = left([Cap("answer", 100)], [few])
    assert left([Cap("answer", 100)], [few], seed=1) != first
    later = left([Cap("answer", 100)], [many])
    kept, kept_later = (
        {place for place, by in enumerate(found) if by < 0} for found in (first, later)
    )
    assert len(kept) == len(kept_later) == 100
    assert len(kept & kept_later) >= 90


@given(
    pairs=st.lists(st.tuples(st.sampled_from("abc "), st.integers(0, 5)), max_size=60),
    share=st.floats(0.05, 0.95),
    most=st.integers(1, 5),
    seed=st.integers(-5, 5),
)
@settings(max_examples=200, deadline=None)
def test_all_limits_hold_together(
    pairs: list[tuple[str, int]], share: float, most: int, seed: int
) -> None:
    types = [kind.strip() for kind, _ in pairs]
    images = [str(image) for _, image in pairs]
    by = left([Cap("type", share), Cap("image", most)], [types, images], seed)
    assert len(by) == len(pairs)
    kept = [place for place, number in enumerate(by) if number < 0]
    kinds = Counter(types[place] for place in kept if types[place])
    assert all(count <= share * len(kept) + 1e-6 for count in kinds.values())
    assert all(count <= most for count in Counter(images[place] for place in kept).values())


def test_limits_of_a_million_pairs_take_seconds() -> None:
    rng = np.random.default_rng(0)
    order = rng.integers(0, 2**63, 1_000_000, np.uint64)
    groups = rng.integers(1, 1000, 1_000_000).astype(np.uint64)
    by = left_out([Cap("answer", 900), Cap("type", 0.6)], [groups, groups % 2 + 1], order)
    assert 0 < np.count_nonzero(by < 0) < 1_000_000
