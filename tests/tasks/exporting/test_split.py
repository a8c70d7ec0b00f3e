"""Judged pairs are split into those that are kept and those that are not; none is lost."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect_imageqa import ConditionError, ObjectStore
from prefect_imageqa.tasks.checking.balance import Cap
from prefect_imageqa.tasks.checking.best import Best
from prefect_imageqa.tasks.errors import ObjectCorruptedError, ObjectMissingError
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA
from prefect_imageqa.tasks.exporting.row_pairs import read_pairs
from prefect_imageqa.tasks.exporting.split import last_split, split_pairs
from prefect_imageqa.tasks.exporting.split_plan import EARLIER_TURN, plan_split
from prefect_imageqa.tasks.storing.layout import FILTERED, JUDGED, SPLIT

CHECKS = [
    pa.field("consistency", pa.float64()),
    pa.field("blind_answerable", pa.bool_()),
    pa.field("judge_visual", pa.int8()),
]
SCHEMA = pa.schema([*PAIRS_SCHEMA, *CHECKS, ("source", pa.string())])

Line = dict[str, Any]


def pair(row: int, number: int = 0, **values: Any) -> Line:
    own = {"row": row, "key": f"{row:032x}", "pair": number, "image": [f"{row}.png"]}
    texts = {"question": "What?", "answer": "A cat.", "style": "short@1", "source": "web"}
    return {**own, **texts, "image_digest": f"{row}", **values}


def judged(store: ObjectStore, lines: Sequence[Line], group: int = 1000) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(lines), SCHEMA), sink, row_group_size=group)
    store.write(JUDGED, sink.getvalue().to_pybytes())


def table(store: ObjectStore, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(name)))


def places(found: pa.Table) -> list[tuple[int, int]]:
    return list(zip(found["row"].to_pylist(), found["pair"].to_pylist(), strict=True))


def test_each_pair_is_in_one_of_two_files_with_the_first_reason(store: ObjectStore) -> None:
    lines = [
        pair(0, consistency=1.0, blind_answerable=False, judge_visual=5),
        pair(0, 1, consistency=0.5, blind_answerable=True),
        pair(2, consistency=None, blind_answerable=True),
        pair(2, 1, consistency=1.0, blind_answerable=None),
        pair(3, consistency=1.0, blind_answerable=True),
        pair(4, consistency=1.0, blind_answerable=False, judge_visual=1),
    ]
    judged(store, lines)
    split = split_pairs(store, "consistency >= 0.66 AND NOT blind_answerable")
    assert (split.pairs, split.filtered_pairs, split.rows, split.filtered_rows) == (2, 4, 2, 2)
    kept, filtered = table(store, PAIRS), table(store, FILTERED)
    assert kept.schema.equals(SCHEMA)
    assert kept.to_pylist() == pa.Table.from_pylist([lines[0], lines[5]], SCHEMA).to_pylist()
    assert places(filtered) == [(0, 1), (2, 0), (2, 1), (3, 0)]
    reasons = [
        *("consistency >= 0.66", "null in consistency", "null in blind_answerable"),
        "NOT blind_answerable",
    ]
    assert filtered["filtered_by"].to_pylist() == reasons
    assert filtered.column_names == [*SCHEMA.names, "filtered_by"]
    assert split.reasons == dict.fromkeys(reasons, 1)
    parts = [(part.text, part.passed, part.failed, part.unknown) for part in split.parts]
    assert parts == [("consistency >= 0.66", 4, 1, 1), ("NOT blind_answerable", 2, 3, 1)]
    assert [found.row for found in read_pairs(store)] == [0, 4]


def test_without_condition_and_limits_all_are_kept(local: ObjectStore) -> None:
    judged(local, [pair(0), pair(1)])
    split = split_pairs(local)
    assert (split.pairs, split.filtered_pairs, split.reasons) == (2, 0, {})
    assert table(local, FILTERED).num_rows == 0


def test_an_output_without_pairs(local: ObjectStore) -> None:
    judged(local, [])
    split = split_pairs(local, "consistency > 0", [Cap("type", 0.3)])
    assert (split.pairs, split.filtered_pairs, split.rows) == (0, 0, 0)
    assert split.parts[0].passed == 0


def test_the_dataset_s_own_columns_can_be_named(local: ObjectStore) -> None:
    judged(local, [pair(0), pair(1, source="book")])
    assert split_pairs(local, "Source = 'web'").reasons == {"source = 'web'": 1}


def test_turns_after_a_filtered_one_are_filtered_too(local: ObjectStore) -> None:
    scores = [
        (0, 1, 1.0),
        (0, 2, 0.0),
        (0, 3, 1.0),
        (1, 1, 1.0),
        (1, 2, 1.0),
        (2, 0, 0.0),
        (2, 0, 1.0),
    ]
    lines = [
        pair(row, number, turn=turn or None, consistency=score)
        for number, (row, turn, score) in enumerate(scores)
    ]
    judged(local, lines)
    split = split_pairs(local, "consistency > 0.5")
    assert places(table(local, PAIRS)) == [(0, 0), (1, 3), (1, 4), (2, 6)]
    assert split.reasons == {"consistency > 0.5": 2, EARLIER_TURN: 1}


def test_limits_come_after_the_condition(local: ObjectStore) -> None:
    answers = ["Yes.", "yes", "YES", "no", "No!", "red"] * 10
    lines = [
        pair(row, answer=answer, consistency=float(row < 54)) for row, answer in enumerate(answers)
    ]
    judged(local, lines)
    split = split_pairs(local, "consistency > 0", [Cap("answer", 9)])
    kept = Counter(
        answer.strip(".!").lower() for answer in table(local, PAIRS)["answer"].to_pylist()
    )
    assert kept == {"yes": 9, "no": 9, "red": 9}
    assert split.reasons == {"consistency > 0": 6, "more than answer=9": 27}
    first = places(table(local, PAIRS))
    split_pairs(local, "consistency > 0", [Cap("answer", 9)], seed=1)
    assert places(table(local, PAIRS)) != first


def test_the_best_are_those_of_what_the_condition_keeps(local: ObjectStore) -> None:
    """Eight have a result and meet it: half of these are four, and one more is as good."""
    scores = [0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, None, float("nan")]
    lines = [
        pair(row, consistency=score, judge_visual=5 if row < 8 else 1 if row < 10 else 5)
        for row, score in enumerate(scores)
    ]
    judged(local, lines)
    half = [Best("consistency", 0.5)]
    split = split_pairs(local, "judge_visual > 4", best=half)
    assert places(table(local, PAIRS)) == [(row, 0) for row in (3, 4, 5, 6, 7)]
    assert split.reasons == {
        "judge_visual > 4": 2,
        "null in consistency": 2,
        "not among the best 50 % by consistency": 3,
    }
    part = split.parts[1]
    assert (part.text, part.passed, part.failed, part.unknown) == (
        *("best 50 % by consistency", 7, 3),
        2,
    )
    assert split_pairs(local, best=half).pairs == 5
    assert places(table(local, PAIRS)) == [(row, 0) for row in (5, 6, 7, 8, 9)]
    record = last_split(local)
    assert record is not None
    assert record.keep_best == ("consistency=0.5",)


def test_pairs_are_among_the_best_by_each_number(local: ObjectStore) -> None:
    judged(local, [pair(row, consistency=row / 10, judge_visual=10 - row) for row in range(10)])
    best = [Best("consistency", 0.7), Best("judge_visual", 0.7)]
    split_pairs(local, best=best)
    assert places(table(local, PAIRS)) == [(row, 0) for row in (3, 4, 5, 6)]
    split_pairs(local, best=best[::-1])
    assert places(table(local, PAIRS)) == [(row, 0) for row in (3, 4, 5, 6)]


def test_limits_come_after_the_best(local: ObjectStore) -> None:
    judged(local, [pair(row, consistency=row / 10, answer="ab"[row % 2]) for row in range(10)])
    split = split_pairs(local, "", [Cap("answer", 2)], best=[Best("consistency", 0.6)])
    assert min(places(table(local, PAIRS))) >= (4, 0)
    assert split.pairs == 4


def test_turns_after_one_that_is_not_among_the_best_are_filtered_too(local: ObjectStore) -> None:
    scores = [0.9, 0.1, 0.9, 0.8]
    lines = [pair(0, place, turn=place + 1, consistency=it) for place, it in enumerate(scores)]
    judged(local, lines)
    split = split_pairs(local, best=[Best("consistency", 0.75)])
    assert places(table(local, PAIRS)) == [(0, 0)]
    assert split.reasons == {"not among the best 75 % by consistency": 1, EARLIER_TURN: 2}


def test_limits_that_no_choice_meets_are_refused_and_change_nothing(local: ObjectStore) -> None:
    judged(local, [pair(row, type="count" if row % 2 else "colour") for row in range(9)])
    split_pairs(local)
    before = local.read(PAIRS)
    with pytest.raises(
        ConditionError, match=r"type=0\.3 leave none of 9 pairs: .* 2 for type=0\.3"
    ):
        split_pairs(local, "", [Cap("type", 0.3)])
    assert local.read(PAIRS) == before


def test_a_bad_condition_changes_nothing(local: ObjectStore) -> None:
    judged(local, [pair(0)])
    with pytest.raises(ConditionError, match="there is no column x"):
        split_pairs(local, "x > 1")
    assert not local.exists(PAIRS)
    assert not local.exists(FILTERED)


def test_files_that_are_right_stay_as_they_are(local: ObjectStore) -> None:
    judged(local, [pair(0, consistency=1.0), pair(1, consistency=0.0)])

    def stamps() -> list[str]:
        return [local.stamp(name) for name in (PAIRS, FILTERED, SPLIT)]

    split = split_pairs(local, "consistency > 0")
    first = stamps()
    assert split_pairs(local, "consistency > 0") == split
    assert stamps() == first
    assert split_pairs(local, "consistency > -1").pairs == 2
    assert split_pairs(local, "consistency > 0") == split
    local.remove(PAIRS)  # as if killed before it was written
    assert split_pairs(local, "consistency > 0") == split
    local.write(FILTERED, b"changed")
    assert split_pairs(local, "consistency > 0") == split
    assert table(local, FILTERED).num_rows == 1
    local.write(SPLIT, b"{")
    assert split_pairs(local, "consistency > 0") == split
    judged(local, [pair(0, consistency=1.0)])
    assert split_pairs(local, "consistency > 0").filtered_pairs == 0
    record = last_split(local)
    assert record is not None
    assert record.keep == "consistency > 0"


def test_what_is_missing_or_corrupted(local: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError):
        split_pairs(local)
    for content in (b"PAR1", b"x" * 100):
        local.write(JUDGED, content)
        with pytest.raises(ObjectCorruptedError, match=r"judged\.parquet is corrupted"):
            split_pairs(local)
    sink = pa.BufferOutputStream()
    lines = [pair(0), {**pair(1), "row": None}]
    pq.write_table(pa.Table.from_pylist(lines, SCHEMA), sink)
    local.write(JUDGED, sink.getvalue().to_pybytes())
    with pytest.raises(ObjectCorruptedError):
        split_pairs(local)


_SCORES = st.none() | st.sampled_from([0.0, 0.5, 1.0])
_FLAGS = st.none() | st.booleans()
_LINES = st.lists(
    st.tuples(st.integers(0, 2), _SCORES, _FLAGS, st.sampled_from("abc"), st.integers(0, 2)),
    max_size=50,
)


@given(
    values=_LINES,
    keep=st.sampled_from(
        [
            *("", "consistency > 0.4", "consistency > 0.4 AND NOT blind_answerable"),
            *("consistency IS NULL OR answer = 'a'", "pair = 0 AND consistency < 1 AND row > 3"),
        ]
    ),
    caps=st.lists(
        st.sampled_from([Cap("answer", 3), Cap("image", 1), Cap("type", 5), Cap("answer", 0.6)]),
        max_size=2,
        unique=True,
    ),
    shares=st.lists(st.sampled_from([0.01, 0.5, 0.99]), max_size=2),
    group=st.integers(1, 20),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_pair_is_lost_or_doubled(
    local: ObjectStore,
    values: list[Any],
    keep: str,
    caps: list[Cap],
    shares: list[float],
    group: int,
) -> None:
    best = [Best("consistency", share) for share in shares]
    lines, row, number = list[Line](), 0, 0
    for step, score, flag, answer, turn in values:
        number = 0 if step or not lines else number + 1
        row += step
        line = pair(row, number, consistency=score, blind_answerable=flag, answer=answer)
        lines.append({**line, "turn": turn or None, "type": answer.upper()})
    judged(local, lines, group)
    try:
        plan = plan_split(local, keep, caps, 7, best=best)
    except ConditionError:  # the limits contradict one another
        return
    split = split_pairs(local, keep, caps, 7, best=best)
    assert split == plan.split
    kept, filtered = table(local, PAIRS), table(local, FILTERED)
    assert (len(kept), len(filtered)) == (split.pairs, split.filtered_pairs)
    assert sorted(places(kept) + places(filtered)) == places(pa.Table.from_pylist(lines, SCHEMA))
    assert places(kept) == sorted(places(kept))
    assert Counter(filtered["filtered_by"].to_pylist()) == split.reasons
    rows, rows_kept = {line["row"] for line in lines}, set(kept["row"].to_pylist())
    assert (split.rows, split.filtered_rows) == (len(rows_kept), len(rows - rows_kept))
    whole = pa.concat_tables([kept, filtered.drop_columns(["filtered_by"])])
    assert sorted(whole.to_pylist(), key=lambda line: (line["row"], line["pair"])) == (
        pa.Table.from_pylist(lines, SCHEMA).to_pylist()
    )
    judged(local, lines, 1000)
    again = plan_split(local, keep, caps, 7, best=best)
    assert again.codes.tolist() == plan.codes.tolist()
