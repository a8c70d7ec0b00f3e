"""The sources with known truth, and what the benchmark of the checks makes of judged pairs."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from check_figures import Cost, Judged, Result, evaluate, tables
from check_sources import HARD, SOURCES, Item, draw_source
from checks import SEED, Bench, measure_all, section
from PIL import Image
from prefect_imageqa.serving.demo_model.judge import Verdict, judge_pair
from prefect_imageqa.serving.demo_model.questions import QuestionKind
from prefect_imageqa.serving.demo_model.scenes import Shape
from prefect_imageqa.tasks.reporting.detection import Detection
from servers import StubServer

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "blue", "large", 1, 1, 1 / 2, 1 / 2, 0.16)


def records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "dataset.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_drawn_again_from_its_seed(name: str, tmp_path: Path) -> None:
    few = draw_source(name, tmp_path / "few", 10, seed=3)
    more = draw_source(name, tmp_path / "more", 20, seed=3)
    other = draw_source(name, tmp_path / "other", 10, seed=4)
    assert few == more[:10] != other
    assert records(tmp_path / "few") == records(tmp_path / "more")[:10]
    for record in records(tmp_path / "few"):
        path = str(record["image"])
        first, second = (tmp_path / folder / path for folder in ("few", "more"))
        assert first.read_bytes() == second.read_bytes()
        assert Image.open(first).size == (192, 192)


def test_every_fifth_planted_answer_is_wrong_and_no_other(tmp_path: Path) -> None:
    items = draw_source("planted", tmp_path, 500, seed=1)
    verdicts = [judge_pair(item.scene, item.question, item.answer) for item in items]
    assert {*verdicts[::5]} == {Verdict.WRONG}
    assert {verdict for number, verdict in enumerate(verdicts) if number % 5} == {Verdict.RIGHT}
    assert [record["is_right"] for record in records(tmp_path)] == [
        verdict is Verdict.RIGHT for verdict in verdicts
    ]
    assert 0.2 < sum(not item.answer.endswith(".") for item in items) / 500 < 0.4


def test_every_fifth_question_gives_its_true_answer_away(tmp_path: Path) -> None:
    items = draw_source("give-away", tmp_path, 500, seed=1)
    for number, item in enumerate(items):
        assert item.gives_away is (number % 5 == 0)
        assert item.is_right(item.question, item.answer)
        assert (item.answer[1:-1] in item.question) is item.gives_away


def test_given_questions_are_of_all_kinds_and_have_an_answer(tmp_path: Path) -> None:
    items = draw_source("given", tmp_path, 190, seed=1)
    kinds = Counter(item.group_of(item.question) for item in items)
    assert kinds == dict.fromkeys({*QuestionKind} - {QuestionKind.CAPTION}, 10)
    undefined = [judge_pair(item.scene, item.question, "") for item in items]
    assert Verdict.UNDEFINED not in undefined


def test_what_is_not_there_is_rightly_denied_and_not_described(tmp_path: Path) -> None:
    items = draw_source("absent", tmp_path, 200, seed=1)
    for item in items:
        assert not item.is_right(item.question, "The circle is red.")
    where = [item for item in items if item.question.startswith("Where is the star")]
    assert where
    for item in where:
        assert item.is_right(item.question, "There is no star in the image.")


def test_hard_images_differ_from_plain_ones_as_their_group_says(tmp_path: Path) -> None:
    items = draw_source("hard", tmp_path, 50, seed=1)
    assert [item.group for item in items[:5]] == list(HARD)
    pixels = [np.asarray(Image.open(tmp_path / f"images/{n:05}.png"), int) for n in range(50)]

    def mean(group: str, measure: "np.typing.NDArray[np.float64] | list[float]") -> float:
        return float(
            np.mean([m for m, item in zip(measure, items, strict=True) if item.group == group])
        )

    edges = [float(np.abs(np.diff(image, axis=1)).max()) for image in pixels]
    colours = [float((image.max(2) - image.min(2)).max()) for image in pixels]
    assert mean("blurred", edges) < 30 < mean("rotated", edges)
    assert mean("16 px", edges) < mean("rotated", edges)
    assert mean("pale", colours) < 0.5 * mean("rotated", colours)
    for item in items:
        if item.group == "off-cell":
            for shape in item.scene:
                assert abs(shape.x - (shape.column + 0.5) / 3) == pytest.approx(0.065)


@pytest.mark.parametrize(
    ("item", "question", "answer", "right"),
    [
        (Item((CIRCLE,)), "What color is the circle?", "The circle is red.", True),
        (Item((CIRCLE,)), "What color is the circle?", "The circle is blue.", False),
        (Item((CIRCLE,)), "Where is the star?", "There is no star in the image.", True),
        (Item((CIRCLE,)), "What color is the circ?", "The circle is red.", False),
        (
            Item((CIRCLE,), plain="What color is the circle?"),
            "As it is red, what color is the circle?",
            "The circle is red.",
            True,
        ),
    ],
    ids=["right", "wrong", "denied", "garbled", "other words"],
)
def test_a_pair_is_right_if_it_says_what_the_scene_shows(
    item: Item, question: str, answer: str, right: bool
) -> None:
    assert item.is_right(question, answer) is right


def judged_table() -> tuple[list[Item], pa.Table]:
    """Ten pairs, of which the first two are wrong; consistency finds one, and one right pair."""
    items = [Item((CIRCLE, STAR), group="all")] * 10
    answers = ["The star is red."] * 2 + ["The star is blue."] * 8
    return items, pa.table(
        {
            "row": pa.array(range(10), pa.int64()),
            "question": ["What color is the star?"] * 10,
            "answer": answers,
            "consistency": [0.0, 1.0, 0.0, *[1.0] * 6, None],
        }
    )


def test_a_check_is_compared_with_the_truth() -> None:
    items, table = judged_table()
    result = evaluate("planted", items, table)
    found = Detection(right_passed=6, wrong_passed=1, right_failed=2, wrong_failed=1)
    alone = replace(found, right_failed=1)  # there is no result about the last pair
    assert result.columns == {"consistency": Judged("at least 0.5", 9, alone)}
    assert result.filter is not None
    assert result.filter.detection == found
    assert result.groups == {"all": found}


def test_a_filter_without_its_check_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    items, table = judged_table()
    result = evaluate("give-away", items, table)
    assert result.filter is None
    assert "blind_answerable" in capsys.readouterr().out


def test_a_give_away_is_what_must_not_pass() -> None:
    items, table = judged_table()
    items = [Item(item.scene, gives_away=number < 5) for number, item in enumerate(items)]
    table = table.append_column("blind_answerable", [[number < 4 for number in range(10)]])
    result = evaluate("give-away", items, table)
    assert result.filter is not None
    assert result.filter.detection == Detection(5, 1, 0, 4)
    assert result.columns["blind_answerable"].detection == Detection(5, 1, 0, 4)


def test_the_tables_have_shares_intervals_goals_and_costs() -> None:
    items, table = judged_table()
    result = evaluate("planted", items, table)
    costs = {"": Cost(0, 1.0), "consistency": Cost(10, 2.5)}
    result = replace(result, costs=costs)
    text = tables({"planted": Result.from_plain(json.loads(json.dumps(result.to_plain())))})
    cells = {
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.split("\n")
    }
    goal = "99.5% at 75% kept: missed"
    kept = ("planted", "10", "`consistency >= 0.5`", "70.0%")
    assert (*kept, "80.0% [49.0-94.3]", "85.7% [48.7-97.4]", "25.0%", goal) in cells
    assert ("`consistency`", "1.00", "250") in cells
    assert ("planted", "all", "10", "70.0%", "80.0%", "85.7%") in cells


def test_the_section_says_where_and_what_was_measured() -> None:
    items, table = judged_table()
    result = evaluate("planted", items, table).to_plain()
    kept = {"date": "2026-11-27", "machine": "2 cores", "minutes": 1.5, "result": result}
    text = section({"planted": kept})
    assert "2026-11-27, 2 cores" in text
    assert "- **planted**: questions of the kinds" in text
    assert "planted 1.5" in text


@pytest.mark.usefixtures("prefect_server")
def test_given_pairs_are_checked_and_the_model_is_not_asked_for_them(
    stub: StubServer, tmp_path: Path
) -> None:
    asked = stub.stats()["requests"]
    bench = Bench(stub.url, stub.model, "digest", ("form",), tmp_path / "build", pairs=10)
    results = tmp_path / "results.json"
    assert measure_all(["planted"], bench, results) == []
    assert stub.stats()["requests"] == asked
    result = Result.from_plain(json.loads(results.read_text())["planted"]["result"])
    assert result.pairs == result.rows == 10
    assert result.columns["form"].detection == Detection(right_passed=8, wrong_passed=2)
    assert [cost.requests for cost in result.costs.values()] == [0, 0]
    (judged,) = tmp_path.glob("build/*/output/checks/judged.parquet")
    items = draw_source("planted", tmp_path / "again", 10, SEED)
    pairs = pq.read_table(judged, columns=["question", "answer", "is_right"]).to_pylist()
    assert [(pair["question"], pair["answer"]) for pair in pairs] == [
        (item.question, item.answer) for item in items
    ]
    assert [pair["is_right"] for pair in pairs] == [False, *[True] * 4] * 2
