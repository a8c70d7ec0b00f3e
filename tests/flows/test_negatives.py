"""Unanswerable pairs of a run, on the stub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect_imageqa import Caching, Checks, Columns, ImageQAError, Limits, image_qa
from prefect_imageqa.flows import negatives as flow_negatives
from prefect_imageqa.flows.filtering import filtered
from prefect_imageqa.tasks.exporting.negatives import negative_rows
from prefect_imageqa.tasks.exporting.output_status import output_status
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.run_record import last_completed
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, ANSWERED_PAIRS, JUDGED
from pydantic import ValidationError

HALF = Checks(negatives=0.5)
NO = "There is no number {} in the image."


def conversation(row: int) -> str:
    """Two pairs: the stub denies the first question whatever it is shown, and answers the other."""
    lines = [
        f"Question: STUB text {NO.format(row)}\nAnswer: red",
        f"Question: STUB text blue {row}\nAnswer: blue",
    ]
    return "STUB text " + "\n".join(lines)


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> dict[str, Any]:
    """A run on four rows, and one that fails."""
    write_rows(tmp_path, drawn, 4)
    return {
        "dataset": str(tmp_path / "rows.parquet"),
        "output": str(tmp_path / "out"),
        "endpoint": stub.url,
        "columns": Columns(),
    }


def write_rows(folder: Path, drawn: Path, count: int) -> None:
    images = [str(drawn / "images" / f"00{number}.png") for number in range(count)]
    conversations = [*map(conversation, range(count)), "STUB finish length"]
    table = {"image": [*images, images[0]], "conversation": conversations}
    pd.DataFrame(table).to_parquet(folder / "rows.parquet")


def pairs(run: dict[str, Any], name: str = PAIRS) -> pd.DataFrame:
    found: pd.DataFrame = pq.read_table(f"{run['output']}/{name}").to_pandas()
    return found


def negatives_of(run: dict[str, Any]) -> list[tuple[int, str]]:
    found = pairs(run)
    chosen = found[found["type"] == "unanswerable"]
    return list(zip(chosen["row"], chosen["answer"], strict=True))


def test_questions_that_another_image_does_not_answer_become_pairs(run: dict[str, Any]) -> None:
    first = image_qa(**run, checks=HALF)
    assert (first.rows, first.ok, first.quarantined) == (5, 4, 1)
    # Each of the 8 questions is asked about another image, and without any.
    assert (first.pairs, first.negatives, first.requests) == (8 + 4, 4, 5 + 8 * 2)
    assert "4 unanswerable pairs added" in str(first)
    assert '"negatives"' not in first.to_json_line()
    found = pairs(run)
    assert list(found["row"]) == sorted(found["row"])
    for _, of_row in found.groupby("row"):
        assert list(of_row["pair"]) == list(range(len(of_row)))
        assert of_row["key"].nunique() == of_row["image_digest"].nunique() == 1
    new = found[found["type"] == "unanswerable"]
    assert sorted(new["answer"]) == [NO.format(row) for row in range(4)]
    assert all(NO.format(row) != answer for row, answer in negatives_of(run))
    assert set(new["style"]) == {"negatives@1"}
    store = ObjectStore(uri=run["output"])
    assert verify(store).problems == []
    status, record = output_status(store), last_completed(store)
    assert status is not None
    assert status.objects["exports"].count >= 7
    assert record is not None
    assert record.counts.negatives == 4
    store.write(ANSWERED_PAIRS, store.read(ALL_PAIRS))
    assert any("answered.parquet: 12 pairs" in line for line in verify(store).problems)


def test_the_same_run_asks_nothing_and_adds_the_same(run: dict[str, Any]) -> None:
    image_qa(**run, checks=HALF)
    before, stamp = negatives_of(run), ObjectStore(uri=run["output"]).stamp(JUDGED)
    again = image_qa(**run, checks=HALF)
    assert (again.requests, again.negatives) == (0, 4)
    assert negatives_of(run) == before
    assert ObjectStore(uri=run["output"]).stamp(JUDGED) == stamp


def test_another_share_takes_fewer_and_none_takes_them_away(run: dict[str, Any]) -> None:
    image_qa(**run, checks=HALF)
    before = negatives_of(run)
    fewer = image_qa(**run, checks=Checks(negatives=0.2))
    assert (fewer.requests, fewer.negatives, fewer.pairs) == (0, 2, 10)
    assert set(negatives_of(run)) < set(before)
    store = ObjectStore(uri=run["output"])
    assert verify(store).problems == []
    for checks in (Checks(keep="true"), Checks()):
        none = image_qa(**run, checks=checks)
        assert (none.requests, none.negatives, none.pairs) == (0, 0, 8)
        assert not negatives_of(run)
        assert not store.exists(ANSWERED_PAIRS)
        assert verify(store).problems == []


def test_other_checks_and_filters_see_them(run: dict[str, Any]) -> None:
    checks = Checks(
        names=("consistency", "blind", "form"),
        keep="consistency = 1 AND NOT blind_answerable AND form = ''",
        negatives=0.5,
    )
    assert image_qa(**run, checks=checks).negatives == 4
    judged = pairs(run, JUDGED)
    new = judged[judged["type"] == "unanswerable"]
    assert list(new["consistency"]) == [1.0] * 4
    assert list(new["blind_answerable"]) == [False] * 4
    assert "refusal" not in set(new["form"])
    store = ObjectStore(uri=run["output"])
    with filtered(store, "type = 'unanswerable'", ()) as split:
        assert (split.pairs, split.filtered_pairs) == (4, 8)
    assert len(negatives_of(run)) == len(pairs(run)) == 4
    assert verify(store).problems == []


def test_more_rows_keep_those_that_are_there(
    run: dict[str, Any], drawn: Path, tmp_path: Path
) -> None:
    checks = Checks(negatives=0.3)
    image_qa(**run, checks=checks)
    before = negatives_of(run)
    write_rows(tmp_path, drawn, 8)
    more = image_qa(**run, checks=checks)
    assert more.requests == 4 + 4 * 2 * 2
    assert more.negatives > len(before)
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_one_that_is_stopped_goes_on_where_it_was(
    run: dict[str, Any], stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any) -> Iterator[Any]:
        rows = negative_rows(*args)
        yield from (next(rows) for _ in range(4))
        raise ImageQAError("stopped")

    monkeypatch.setattr(flow_negatives, "negative_rows", stopped)
    one = Limits(batch_size=1)
    with pytest.raises(ImageQAError, match="stopped"):
        image_qa(**run, checks=HALF, limits=one)
    monkeypatch.undo()
    before = stub.stats()["requests"]
    resumed = image_qa(**run, checks=HALF, limits=one)
    assert stub.stats()["requests"] - before == resumed.requests == 2 * 8 - 4
    assert resumed.negatives == 4
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_a_failed_request_gives_no_pair(run: dict[str, Any], stub: Any) -> None:
    frame = pd.read_parquet(run["dataset"])
    lines = [f"Question: STUB finish length {row}\nAnswer: red" for row in range(len(frame))]
    frame["conversation"] = [f"STUB text {line}" for line in lines]
    frame.to_parquet(run["dataset"])
    found = image_qa(**run, checks=HALF)
    assert (found.pairs, found.negatives) == (5, 0)
    again = image_qa(**run, checks=HALF, caching=Caching(retry_quarantined=True))
    assert again.requests
    assert again.negatives == 0


def test_without_another_image_there_are_none(run: dict[str, Any]) -> None:
    frame = pd.read_parquet(run["dataset"])
    frame["image"] = frame["image"][0]
    frame.to_parquet(run["dataset"])
    found = image_qa(**run, checks=HALF)
    assert (found.pairs, found.negatives, found.requests) == (8, 0, 5)
    assert verify(ObjectStore(uri=run["output"])).problems == []


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_is_up_to_one_half(share: float) -> None:
    with pytest.raises(ValidationError):
        Checks(negatives=share)
