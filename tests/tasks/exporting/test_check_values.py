from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.checking import CHECK_NAMES, Check, CheckSettings, Values, open_check
from prefect_imageqa.tasks.checking.check import ComputedCheck
from prefect_imageqa.tasks.checking.conditions import Condition
from prefect_imageqa.tasks.errors import ConditionError, StoreError
from prefect_imageqa.tasks.exporting.check_values import CheckValues
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.judged import OpenChecks, write_judged
from prefect_imageqa.tasks.exporting.pairs_parquet import LATER_CHECKS, PAIRS_SCHEMA
from prefect_imageqa.tasks.exporting.split import split_pairs
from prefect_imageqa.tasks.exporting.split_plan import plan_split
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, Row
from prefect_imageqa.tasks.runs.checks import Checks
from prefect_imageqa.tasks.storing.key_index import Array
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, JUDGED

PAIRS = 5000
"""More than one batch of pairs."""


def check(name: str, kind: pa.DataType) -> Check:
    return ComputedCheck(name, (pa.field(name, kind),), lambda _: iter(()))


FORM, RATING = check("form", pa.string()), check("rating", pa.int8())
SCHEMA = pa.schema([*PAIRS_SCHEMA, *FORM.columns, *RATING.columns])


@pytest.fixture
def exported(local: ObjectStore) -> ObjectStore:
    """An output with one pair for each row; the answer is its number."""
    outcomes = [
        Answered(f"{n:032x}", "", [{"question": "Which?", "answer": f"{n}"}], "m", 1, 1, 0.1)
        for n in range(PAIRS)
    ]
    rows = [Row(number, {"image": "a.png"}, "d") for number in range(PAIRS)]
    columns = Columns(image="image", conversation=None)
    export_rows.fn(local, outcomes, rows, PAIRS, columns, pairs_name=ALL_PAIRS)
    return local


def opened(store: ObjectStore, keep: str, folder: Path) -> CheckValues:
    folder.mkdir(exist_ok=True)
    return CheckValues(store, [FORM, RATING], Condition(keep, SCHEMA), PAIRS, folder)


def texts(*others: str | None) -> list[Values]:
    return [*((text,) for text in others), *[("",)] * (PAIRS - len(others))]


NOTHING = np.zeros(PAIRS, bool)


def places(dropped: Array) -> list[int]:
    found: list[int] = np.flatnonzero(dropped).tolist()
    return found


def test_a_part_drops_pairs_as_soon_as_all_its_columns_are_known(
    exported: ObjectStore, tmp_path: Path
) -> None:
    keep = "rating > 2 AND (form = '' OR rating > 4) AND form <> 'cut' AND answer <> '4999'"
    values = opened(exported, keep, tmp_path / "values")
    assert places(values.dropped()) == [4999]
    values.add("form", iter(texts("cut", None, "other", "other")), NOTHING)
    first = values.dropped()
    assert places(first) == [0, 1, 4999]
    ratings: list[Values] = [(None,), (None,), (3,), (5,), *[(3,)] * (PAIRS - 5), (None,)]
    values.add("rating", iter(ratings), first)
    assert places(values.dropped()) == [0, 1, 2, 4999]
    assert places(first) == [0, 1, 4999]  # as it was for the check
    judged = write_judged.fn(exported, [RATING, FORM], values)
    assert judged.unjudged == {"form": 1}
    table = pq.read_table(exported.uri_of(JUDGED))
    assert table["form"].to_pylist()[:4] == ["cut", None, "other", "other"]
    assert table["rating"].to_pylist() == [rating for (rating,) in ratings]


def test_the_reason_is_the_part_that_dropped_the_pair(
    exported: ObjectStore, tmp_path: Path
) -> None:
    keep = "rating > 2 AND form = ''"
    values = opened(exported, keep, tmp_path / "values")
    values.add("form", iter(texts("cut", None)), NOTHING)
    dropped = values.dropped()
    ratings: list[Values] = [(None,), (None,), (1,), (None,), *[(3,)] * (PAIRS - 4)]
    values.add("rating", iter(ratings), dropped)
    write_judged.fn(exported, [RATING, FORM], values)
    reasons = {"form = ''": 1, "null in form": 1, "rating > 2": 1, "null in rating": 1}
    split = split_pairs(exported, keep)
    assert split.reasons == reasons
    counts = {part.text: (part.unknown, part.unasked) for part in split.parts}
    assert counts == {"rating > 2": (1, 2), "form = ''": (1, 0)}
    table = pq.read_table(exported.uri_of(JUDGED))
    pq.write_table(
        table.replace_schema_metadata({LATER_CHECKS: b"\xff x== rating=a form"}), tmp_path / "f"
    )
    exported.put(JUDGED, tmp_path / "f")
    assert plan_split(exported, keep).split.pairs == PAIRS - 4
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "f")
    exported.put(JUDGED, tmp_path / "f")
    assert plan_split(exported, keep).split.reasons["null in rating"] == 3  # in the order written


def test_the_digest_is_of_all_that_the_values_are_made_from(
    exported: ObjectStore, tmp_path: Path
) -> None:
    def digest(
        said: list[Values], inputs: str = "1", reading: str = "form", skipped: int = 0
    ) -> str:
        values = opened(exported, "", tmp_path / "values")
        values.add("form", iter(said), np.arange(PAIRS) < skipped)
        return values.digest(inputs, {reading})

    first = digest(texts("cut"))
    assert digest(texts("cut")) == first
    others = [digest(texts("other")), digest(texts("cut"), "2"), digest(texts("cut"), skipped=1)]
    assert len({first, *others}) == 4
    assert digest(texts("cut"), reading="rating") == digest(texts("other"), reading="rating")


def test_mistakes_are_one_line(exported: ObjectStore, tmp_path: Path) -> None:
    values = opened(exported, "CAST(form AS INT) > 1", tmp_path / "values")
    values.add("form", iter(texts("none")), NOTHING)
    with pytest.raises(ConditionError, match="TRY_CAST"):
        values.dropped()
    values = opened(exported, "form = ''", tmp_path / "values")
    values.add("form", iter(texts()[:-1]), NOTHING)
    with pytest.raises(StoreError, match="more pairs than check form has judged"):
        values.dropped()


def test_checks_that_cost_less_come_first(local: ObjectStore) -> None:
    settings = CheckSettings(local, lambda: pytest.fail("not read"), times=5)
    names = [name for name in CHECK_NAMES if name != "contamination"]
    for given in (names, names[::-1]):
        checks = [open_check(name, settings) for name in given]
        ordered = OpenChecks(Checks(), checks, Condition("", SCHEMA)).by_cost
        assert {check.name for check in ordered[:2]} == {"form", "duplicates"}
        assert [check.name for check in ordered[2:]] == [
            *("blind", "confidence", "fluency", "swapped", "judge", "perturbed", "consistency")
        ]
