"""`evaluate` and `review` on an output of a checked run."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa import Checks, ObjectStore, image_qa
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS_SCHEMA
from prefect_imageqa.tasks.records import Answered, Kind, Quarantined
from prefect_imageqa.tasks.runs.run_record import RunRecord, complete_run
from prefect_imageqa.tasks.storing.layout import FILTERED, JUDGED, open_output
from prefect_imageqa.tasks.storing.store import write_part

from .conftest import Call

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

FIELDS = [
    pa.field("consistency", pa.float64()),
    pa.field("form", pa.string()),
    pa.field("is_right", pa.bool_()),
]
HOSTILE = "\x1b[31mred\x1b[0m \u202e"


def write(store: ObjectStore, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write(name, sink.getvalue().to_pybytes())


def pairs_of(questions: Sequence[str], answers: Sequence[str]) -> pa.Table:
    """A pair of each row: every fifth is inconsistent, and every tenth wrong."""
    lines = [
        {
            "row": number,
            "key": f"{number:032x}",
            "pair": 0,
            "image": [f"{number}.png"],
            "question": question,
            "answer": answer,
            "type": HOSTILE if number else "count",
            "image_digest": f"{number}",
            "consistency": float(number % 5 != 4) if number else None,
            "form": "",
            "is_right": number % 10 != 9,
        }
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    return pa.Table.from_pylist(lines, pa.schema([*PAIRS_SCHEMA, *FIELDS]))


@pytest.fixture
def output(tmp_path: Path, record_of: Callable[..., RunRecord]) -> ObjectStore:
    """An output of 20 pairs, of which four are inconsistent, two wrong, and four filtered."""
    store = ObjectStore(uri=str(tmp_path / "out"))
    questions = [f"What is number {number}?" for number in range(20)]
    pairs = pairs_of(questions, ["A cat."] * 20)
    open_output(store)
    write(store, JUDGED, pairs)
    taken = pairs.filter(pa.compute.equal(pairs["consistency"], 0.0))
    write(store, FILTERED, taken.append_column("filtered_by", [["keep"] * len(taken)]))
    checks = {"names": ["consistency", "form"]}
    complete_run(store, record_of(parameters={"checks": checks}))
    keys = [f"{number + 1:032x}" for number in range(4)]
    asked = [Answered(key, "A cat.", [], "m", 100, 5, 0.25) for key in keys[:3]]
    failed = Quarantined(keys[3], 3, "row 3", Kind.TIMEOUT, "no reply")
    write_part(store, "checks/consistency/parts/answer-v1", keys[0], [*asked, failed], 1)
    return store


def test_an_output_is_evaluated(call: Call, output: ObjectStore) -> None:
    code, out, err = call("evaluate", output.uri, "--truth", "is_right")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in (
        "20 pairs about 20 images: 20 with 1",
        "20 distinct questions",
        "count 1 5.0 %",
        "16 of 20 pairs are kept (80.0 %)",
        "keep 4 20.0 %",
        "consistency at least 0.5 15 4 1 0 0, 1, 1",
        "form no problem found 20 0 0 0",
        "consistency form 15 0 4 0",
        "right before the filter: 90.0 % (69.9-97.2) of 20 pairs",
        "right after the filter: 100.0 % (80.6-100.0) of 16 pairs",
        "consistency 100.0 % (79.6-100.0) 50.0 % (15.0-85.0) 100.0 % (34.2-100.0) 2 of 17 0.941",
        "the filter 100.0 % (80.6-100.0) 50.0 % (15.0-85.0) 100.0 % (34.2-100.0) 2 of 18",
        "consistency 4 1 300 15 0.8",
    ):
        assert expected in lines, out
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_the_evaluation_as_json(call: Call, output: ObjectStore) -> None:
    code, out, _ = call("evaluate", output.uri, "--truth", "is_right", "--json")
    assert code == 0
    found = json.loads(out)
    assert out.count("\n") == 1
    assert (found["pairs"], found["kept"], found["questions"]) == (20, 16, 20)
    assert found["pairs_per_image"] == {"1": 20}
    check = found["checks"]["consistency"]
    assert (check["passed"], check["failed"], check["unjudged"]) == (15, 4, 1)
    assert check["bins"] == {"0": 4, "1": 15}
    assert check["recall"]["share"] == 1.0
    assert found["filter"]["right_after"]["count"] == 16
    [cost] = found["costs"]
    assert (cost["check"], cost["asked"], cost["failed"]) == ("consistency", 4, 1)
    assert found["agreements"] == [
        {
            "first": "consistency",
            "second": "form",
            "both": 15,
            "only_first": 0,
            "only_second": 4,
            "neither": 0,
        }
    ]


def test_the_truth_of_a_demo_dataset(call: Call, output: ObjectStore, tmp_path: Path) -> None:
    scenes = write_demo_dataset(tmp_path / "data", 20, 7)
    questions = [f"What color is the {scene[0].kind}?" for scene in scenes]
    answers = [f"The {scene[0].kind} is {scene[0].colour}." for scene in scenes]
    write(output, JUDGED, pairs_of(questions, [*answers[:18], "Pink.", "It."]))
    code, out, _ = call("evaluate", output.uri, "--scenes", str(tmp_path / "data" / "scenes.json"))
    assert code == 0
    assert "right before the filter: 90.0 %" in out
    assert any(line.split()[:2] == ["colour", "20"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--truth", "right"], "no column 'right'"),
        (["--truth", "form"], "column 'form' is of type string"),
        (["--scenes", "missing.json"], "missing.json: No such file"),
        (["--truth", "a", "--scenes", "b"], "give one of --truth, --scenes and --review"),
        (["--review", "missing.json"], "missing.json: No such file"),
    ],
)
def test_a_mistake_is_one_line(
    call: Call, output: ObjectStore, flags: list[str], message: str
) -> None:
    code, out, err = call("evaluate", output.uri, *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_no_output_and_a_corrupted_one(call: Call, output: ObjectStore, tmp_path: Path) -> None:
    assert call("evaluate", str(tmp_path / "none"))[0] == 1
    output.write(JUDGED, b"PAR1" * 9)
    code, out, err = call("evaluate", output.uri)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "judged.parquet is corrupted" in err


def test_a_sample_is_reviewed(call: Call, output: ObjectStore, tmp_path: Path) -> None:
    page, saved = tmp_path / "review.html", tmp_path / "review.json"
    flags = ("--to", str(page), "--sample", "6", "--seed", "1")
    code, out, err = call("review", output.uri, *flags)
    assert (code, out) == (0, f"{page}: 6 pairs\n")
    assert err == "the page has no images: give the run's dataset as --dataset\n"
    found = re.findall(r'data-row="(\d+)" data-pair="(\d+)" data-digest="(\w+)"', page.read_text())
    assert len(found) == 6
    verdicts = [
        {"row": int(row), "pair": int(pair), "digest": digest, "verdict": "right"}
        for row, pair, digest in found
    ]
    saved.write_text(json.dumps({"verdicts": verdicts}))
    code, out, _ = call("evaluate", output.uri, "--review", str(saved))
    assert code == 0
    assert "right before the filter: 100.0 % (61.0-100.0) of 6 pairs" in out
    code, out, err = call("review", output.uri, *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "review.html exists: give another file with --to" in err
    saved.write_text('{"verdicts": []}')
    code, _, err = call("evaluate", output.uri, "--review", str(saved))
    assert (code, "of none of the pairs it is known" in err) == (1, True)


def test_the_report_of_a_checked_run(
    with_report: None, call: Call, stub: Any, drawn: Path, tmp_path: Path
) -> None:
    """Written by the run, and recreated by `report`; a pair is shown that checks disagree on."""
    dataset, output = str(drawn / "dataset.json"), ObjectStore(uri=str(tmp_path / "checked"))
    rows = json.loads(Path(dataset).read_text())
    reply = "text **Question:** What is in the?\n**Answer:** A stub."
    rows[3]["conversation"] = [{"from": "human", "value": f"STUB {reply}"}]
    Path(dataset).write_text(json.dumps(rows))
    keep = "consistency >= 0.5 AND form = ''"
    checks = Checks(names=("consistency", "form"), keep=keep, ask_dropped=True)
    summary = image_qa(dataset, output.uri, endpoint=stub.url, checks=checks)
    assert (summary.ok, summary.filtered, summary.filtered_pairs) == (11, 1, 1)
    pages = [output.read(name).decode() for name in ("report.html", "README.md")]
    for page in pages:
        assert "11 of 12 pairs are kept (91.7 %)" in page
    [disputed] = re.findall(r'<article class="disputed">(.*?)</article>', pages[0], re.DOTALL)
    assert disputed.count("data:image/jpeg") == 1
    assert ">What is in the?</dt>" in disputed
    assert "row 3, pair 0 · filtered" in disputed
    assert call("report", output.uri, "--dataset", dataset)[0] == 0
    assert [output.read(name).decode() for name in ("report.html", "README.md")] == pages
    code, out, _ = call("evaluate", output.uri, "--json")
    found = json.loads(out)
    assert (code, found["pairs"], found["kept"]) == (0, 12, 11)
    assert {name: check["failed"] for name, check in found["checks"].items()} == {
        "consistency": 0,
        "form": 1,
    }
    [cost] = found["costs"]
    assert (cost["check"], cost["asked"]) == ("consistency", 12)
