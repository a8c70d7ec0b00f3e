"""What a condition keeps, and that it can do nothing but look at a pair."""

import random
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from prefect_imageqa import ConditionError
from prefect_imageqa.tasks.checking import conditions
from prefect_imageqa.tasks.checking.conditions import Condition

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("options", pa.list_(pa.string())),
        ("consistency", pa.float64()),
        ("blind_answerable", pa.bool_()),
        ("judge_visual", pa.int8()),
        ("Answer", pa.string()),
        ('a "b', pa.int64()),
        ("data", pa.binary()),
    ]
)
PAIRS = pa.record_batch(
    [
        pa.array([0, 1, 2]),
        pa.array(["How many red\ncars?", "x", "É a é"]),
        pa.array(["2", "red", None]),
        pa.array([["a", "b"], None, []], pa.list_(pa.string())),
        pa.array([1.0, 0.5, None]),
        pa.array([False, True, None]),
        pa.array([5, 4, 3], pa.int8()),
        pa.array(["second"] * 3),
        pa.array([1, 2, 3]),
        pa.array([b"x"] * 3),
    ],
    schema=SCHEMA,
)

HIDDEN = pa.table({"a": [1]})
"""A variable of Python, which is no table."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Consistency >= 0.66", [True, False, None]),
        ("NOT blind_answerable", [True, False, None]),
        ("judge_visual BETWEEN 4 AND 5", [True, True, False]),
        ('"A ""B" > 1', [False, True, True]),
        ("question LIKE '%many_red%'", [True, False, False]),
        ("question LIKE '%many.red%'", [False, False, False]),
        ("question LIKE 'How many red_cars?'", [True, False, False]),
        ("question NOT ILIKE 'how%'", [False, True, True]),
        ("question ILIKE 'é%A%É'", [False, False, True]),
        ("question ~ '(?i)^how'", [True, False, False]),
        ("regexp_matches(question, 'HOW', 'i')", [True, False, False]),
        ("length(answer) > 2 OR options[1] = 'a'", [True, True, None]),
        ("list_contains(options, 'b')", [True, None, False]),
        ("TRY_CAST(answer AS INTEGER) = 2", [True, None, None]),
        ("TRY(CAST(answer AS INTEGER)) = 2", [True, None, None]),
        ("blind_answerable IS NOT TRUE", [True, False, True]),
        ("consistency IS NULL", [False, False, True]),
        ("consistency IS NOT NULL", [True, True, False]),
        ("coalesce(consistency, 1) > .5", [True, False, True]),
        ("nullif(answer, 'red') = '2'", [True, None, None]),
        ("judge_visual * 100 > 450", [True, False, False]),
        ("answer IN ('red', '2')", [True, True, None]),
        ("answer NOT IN ('red')", [True, False, None]),
        ("-consistency < -0.7", [True, False, None]),
        ("row % 2 = 0 -- even", [True, False, True]),
        ("(row + 1) * 2 = 4 /* the second */", [False, True, False]),
        ("answer = 'it''s' OR NULL", [None, None, None]),
        ("contains(lower(question), 'red')", [True, False, False]),
        ("TRUE", [True, True, True]),
        ("row = 1) OR (row = 2", [False, True, True]),  # one condition, if an odd one
    ],
)
def test_what_a_condition_says_of_a_pair(text: str, expected: list[bool | None]) -> None:
    [found] = Condition(text, SCHEMA).evaluate(PAIRS)
    assert found.to_pylist() == expected


def test_the_parts_of_a_condition() -> None:
    text = "consistency>=.66 and not Blind_Answerable AND (judge_visual > 4 OR answer LIKE '2%')"
    condition = Condition(text, SCHEMA)
    assert [(part.text, part.columns) for part in condition.parts] == [
        ("consistency >= .66", ("consistency",)),
        ("NOT blind_answerable", ("blind_answerable",)),
        ("(judge_visual > 4) OR (answer LIKE '2%')", ("judge_visual", "answer")),
    ]
    assert condition.columns == ("answer", "consistency", "blind_answerable", "judge_visual")
    found = [result.to_pylist() for result in condition.evaluate(PAIRS)]
    assert found == [[True, False, None], [True, False, None], [True, False, None]]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_condition_has_no_parts(text: str) -> None:
    condition = Condition(text, SCHEMA)
    assert (condition.parts, condition.columns, condition.evaluate(PAIRS)) == ((), (), [])


ATTACKS = [
    "(SELECT 1) = 1",
    "EXISTS (SELECT 1 FROM information_schema.tables)",
    "row IN (SELECT row FROM pairs)",
    "row = ANY (options)",
    "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
    "(SELECT content FROM read_text('/etc/passwd')) <> ''",
    "(FROM '/etc/passwd') IS NULL",
    "pg_sleep(5) IS NULL",
    "getenv('HOME') = 'x'",
    "current_setting('threads') = '1'",
    "current_user = 'x'",
    "current_date > '2020-01-01'",
    "row > 0) ORDER BY (row",
    "row > 0) LIMIT (1",
    "row > 0), (SELECT 1",
    "row > 0) FROM (SELECT 1) UNION SELECT (TRUE",
    "row > 0) FROM read_csv('/etc/passwd') WHERE (TRUE",
    "row > 0; DROP TABLE pairs",
    "TRUE); ATTACH '/tmp/x.db' AS y; SELECT (TRUE",
    "TRUE); COPY (SELECT 1) TO '/tmp/x.csv'; SELECT (TRUE",
    "TRUE); SET lock_configuration = FALSE; SELECT (TRUE",
    "TRUE); INSTALL httpfs; SELECT (TRUE",
    "TRUE /*",
    "TRUE */",
    "-- TRUE",
    "TRUE, TRUE",
    "(TRUE, TRUE)",
    "TRUE AS kept",
    "TRUE kept",
    "row > 0 WHERE row > 1",
    "SET threads = 3",
    "PRAGMA version",
    "len(range(100000000)) > 1",
    "list_sum(generate_series(1, 100000000)) > 1",
    "repeat(question, 100000000) = 'x'",
    "lpad(question, 100000000, 'x') = 'x'",
    "replace(question, 'a', question) = 'x'",
    "question || question = 'x'",
    "concat(question, question) = 'x'",
    "printf('%1000000000d', row) = 'x'",
    "list_transform(options, x -> x) = options",
    "[x FOR x IN options] = options",
    "CASE WHEN blind_answerable THEN FALSE ELSE TRUE END",
    "{'a': 1}.a = 1",
    "sum(row) > 1",
    "count(*) > 1",
    "row_number() OVER () > 1",
    "random() > 0.5",
    "error('x')",
    "query('SELECT 1')",
    "columns('.*') = 1",
    "* = 1",
    "pairs.row > 1",
    "$1",
    "?",
    "#1 > 1",
    "rowid > 0",
    "row = 1 COLLATE nocase",
    "lower(DISTINCT answer) = 'x'",
    "lower(answer ORDER BY row) = 'x'",
    "lower(answer) FILTER (WHERE TRUE) = 'x'",
    "main.lower(answer) = 'x'",
    "lower(x := answer) = 'x'",
    "row::JSON IS NULL",
    "CAST(row AS DATE) = '2020-01-01'",
    "CAST(answer AS INTEGER[]) IS NULL",
    "INTERVAL 1 DAY > INTERVAL 2 DAY",
    "data IS NULL",
    "question LIKE answer",
    "question ~ answer",
    "contains(question, answer)",
    "question ~ '((a{100}){100}){10}'",
    "question ~ '(\\pL?\\pN?\\pM?){90}z'",
    "question ~ '(.*a.{90})b'" + " OR question ~ '(.*a.{90})c'",
    "question LIKE '%a" + "_" * 600 + "%' OR answer LIKE '%b" + "_" * 600 + "%'",
    "question ~ '('",
    "question SIMILAR TO 'a{251}'",
    "regexp_matches(question, 'a', answer)",
    "regexp_matches(question, 'a', 'gx')",
    "question GLOB '*'",
    "NOT " * 200 + "TRUE",
    "(" * 1000 + "TRUE" + ")" * 1000,
    "row = 1 OR " * 1000 + "TRUE",
    "row = 1 OR " * 200 + "TRUE",
    "lower(" * 30 + "answer" + ")" * 30 + " = 'x'",
    "row + " * 100 + "1 = 1",
    "'" + "a" * 100_000 + "' = answer",
    "row = '\ud800'",
    "\0",
    "NULL",
    "row",
    "row AND TRUE",
    "NOT answer",
    "1",
    "'yes'",
    "'a' = 'b",
    "answer > 3",
    "consistency >",
]


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text[:60]))
def test_what_is_no_condition_is_refused_in_one_line(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ConditionError) as raised:
        Condition(text, SCHEMA).evaluate(PAIRS)
    assert time.perf_counter() - began < 20
    message = str(raised.value)
    assert message.isprintable()
    assert message.startswith("keep ")
    assert len(message) < 1500


def test_a_condition_writes_and_reads_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for text in (
        f"(SELECT count(*) FROM '{secret}') > 0",  # noqa: S608
        f"TRUE); COPY (SELECT 1) TO '{tmp_path}/out.csv'; SELECT (TRUE",
        f"TRUE); ATTACH '{tmp_path}/out.db' AS x; SELECT (TRUE",
    ):
        with pytest.raises(ConditionError):
            Condition(text, SCHEMA).evaluate(PAIRS)
    assert list(tmp_path.iterdir()) == [secret]


def test_the_database_itself_is_locked(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    database = Condition("TRUE", SCHEMA)._database
    for statement in (
        f"SELECT * FROM read_csv('{secret}')",  # noqa: S608
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/out.db' AS x",
        "SET threads = 3",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM HIDDEN",
    ):
        with pytest.raises(Exception, match=r"."):
            database.sql(statement).fetchall()
    assert list(tmp_path.iterdir()) == [secret]


@pytest.mark.parametrize(
    ("column", "check"),
    [("confidence", "confidence"), ("near_duplicate_image", "duplicates"), ("form", "form")],
)
def test_a_column_of_a_check_that_is_not_made_names_the_check(column: str, check: str) -> None:
    with pytest.raises(ConditionError) as raised:
        Condition(f"{column} > 1", SCHEMA)
    message = f"there is no column {column}: run with --check {check}"
    assert str(raised.value) == f"keep '{column} > 1': {message}"


def test_an_unknown_column_of_a_check_that_is_made_is_told_with_those_there_are() -> None:
    with pytest.raises(ConditionError, match=r"there is no column judge_tone \(texts"):
        Condition("judge_tone > 1", SCHEMA)


def test_an_unknown_column_is_told_with_those_there_are() -> None:
    with pytest.raises(ConditionError) as raised:
        Condition("consistancy > 1", SCHEMA)
    assert str(raised.value) == (
        "keep 'consistancy > 1': there is no column consistancy (texts are in single quotes); the "
        "columns are row, question, answer, options, consistency, blind_answerable, judge_visual, "
        'a "b'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("consistency", "consistency is no condition: compare it, such as consistency = ..."),
        ("judge_visual + 1", "judge_visual + 1 is no condition: compare it"),
        ("row > 0) ORDER BY (row", "it must be one condition, and nothing else"),
        ("pg_sleep(1)", "the function pg_sleep cannot be part of a condition"),
        ("row > (SELECT 1)", "a subquery cannot be part of a condition"),
        ("answer > 3", "Cannot compare values of type VARCHAR and type INTEGER_LITERAL"),
        ("row >", "its brackets do not match, or something is missing at its end"),
        (
            "length(é) > length(answer",
            "its brackets do not match, or something is missing at its end",
        ),
        ("row > 0 row", 'syntax error at or near "row"'),
        ("row > 0; DROP TABLE pairs", "it must be one condition, and nothing else"),
    ],
)
def test_the_message_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConditionError) as raised:
        Condition(text, SCHEMA)
    assert str(raised.value).startswith(f"keep '{text}': {message}")


def test_a_value_that_cannot_be_cast_is_told_with_the_remedy() -> None:
    condition = Condition("CAST(answer AS INTEGER) > 1", SCHEMA)
    with pytest.raises(ConditionError) as raised:
        condition.evaluate(PAIRS)
    assert "Could not convert string 'red'" in str(raised.value)
    assert str(raised.value).endswith("; TRY_CAST gives NULL instead")


@pytest.mark.parametrize(
    "text",
    [
        "question LIKE '%" + "a%" * 100 + "b'",
        "question ILIKE '%" + "a%" * 100 + "b_'",
        "question ~ '(a*)*b'",
        "question ~ '(a|a)*(a|aa)*b'",
        "question ~ '(.*a.{49})b'",
        "contains(question, '" + "a" * 199 + "b')",
    ],
    ids=lambda text: text[:30],
)
def test_a_long_text_takes_linear_time(text: str) -> None:
    schema = pa.schema([("question", pa.string())])
    condition = Condition(text, schema)
    batch = pa.record_batch([pa.array(["a" * 300_000])], schema=schema)
    began = time.perf_counter()
    [found] = condition.evaluate(batch)
    assert time.perf_counter() - began < 20
    assert found.to_pylist() == [False]


def test_a_pattern_that_takes_minutes_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some 15 s a megabyte, of which there is a tenth."""
    monkeypatch.setattr(conditions, "_SECONDS", 0.2)
    monkeypatch.setattr(conditions, "_PIECE_BYTES", 1 << 14)
    schema = pa.schema([("question", pa.string())])
    letters = random.Random(1).choices("ab", k=100_000)
    texts = ["".join(letters[start : start + 2000]) for start in range(0, len(letters), 2000)]
    batch = pa.record_batch([pa.array(texts)], schema=schema)
    condition = Condition("question LIKE '%a" + "_" * 990 + "%'", schema)
    began = time.thread_time()
    with pytest.raises(ConditionError, match="it takes too long: use simpler patterns"):
        condition.evaluate(batch)
    assert time.thread_time() - began < 6
    monkeypatch.setattr(conditions, "_SECONDS", 5.0)
    simple = Condition("question ~ '.*(ab|ba){3}.*' OR question ILIKE '%b_a%b'", schema)
    [found] = simple.evaluate(batch)
    assert found.to_pylist() == [True] * len(batch)


def test_conditions_share_nothing_between_threads() -> None:
    opened = [Condition(f"row = {number}", SCHEMA) for number in range(3)]
    found: dict[int, list[bool]] = {}

    def evaluate(number: int) -> None:
        for _ in range(20):
            found[number] = opened[number].evaluate(PAIRS)[0].to_pylist()

    threads = [threading.Thread(target=evaluate, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number].index(True) for number in range(3)] == [0, 1, 2]
