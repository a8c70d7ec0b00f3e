"""`plan`: what a run will take, and what was counted in real runs of some sizes."""

import json
from math import ceil
from pathlib import Path

import pytest
from prefect_imageqa.flows.cli import slopes
from prefect_imageqa.flows.cli.sizes import Figure, Size, ceiling, figures, sizes_table
from prefect_imageqa.tasks.runs.workers import MAX_WORKERS

from .conftest import Call

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

GPUS = ["--rate-per-gpu", "30", "--gpus", "30"]


def found(rows: int, rate: float = 30, gpus: int = 30) -> dict[str, Figure]:
    """The figures by name."""
    return {figure.name: figure for figure in figures(Size(rows, rate, gpus))}


def test_gpu_hours_and_time_follow_from_rows_and_rate() -> None:
    plan = found(1_000_000)
    assert plan["gpu_hours"].value == pytest.approx(1_000_000 / 30 / 3600)
    assert plan["seconds"].value == pytest.approx(1_000_000 / 900)
    assert {plan[name].basis for name in ("gpu_hours", "seconds")} == {"computed"}


@pytest.mark.parametrize(
    ("rows", "objects", "writes", "reads"),
    [(4_096, 24, 58, 102), (16_384, 48, 83, 188), (131_072, 146, 324, 591)],
)
def test_objects_and_requests_are_about_those_of_real_runs(
    rows: int, objects: int, writes: int, reads: int
) -> None:
    """Runs on an S3 server, whose requests were counted; the largest took 143 s."""
    plan = found(rows)
    assert plan["objects"].value == pytest.approx(objects, abs=1)
    assert plan["s3_writes"].value == pytest.approx(writes, rel=0.1)
    assert plan["s3_reads"].value == pytest.approx(reads, rel=0.25)


def test_requests_of_a_run_with_workers_are_about_those_of_a_real_one() -> None:
    """Of 16,384 rows with two workers, in 15.6 s."""
    requests = Size(16_384, rate=16_384 / 15.6, gpus=1).requests(workers=2)
    assert requests.writes == pytest.approx(251, rel=0.1)
    assert requests.reads == pytest.approx(297, rel=0.25)


def test_a_figure_says_whether_runs_of_its_size_were_measured() -> None:
    few, many = found(1_000), found(10**8)
    assert {few[name].basis for name in ("cores", "memory", "s3_writes")} == {"measured"}
    assert {many[name].basis for name in ("cores", "memory", "s3_writes")} == {"extrapolated"}
    unsourced = {name for name, figure in many.items() if not figure.source}
    assert unsourced == {"gpu_hours", "seconds", "task_runs"}


def test_costs_grow_with_the_rows_and_task_runs_do_not() -> None:
    plan, tenfold = found(10**7), found(10**8)
    for name in ("gpu_hours", "s3_writes", "s3_image_reads", "objects", "export_bytes"):
        assert tenfold[name].value == pytest.approx(10 * plan[name].value, rel=0.02), name
    assert plan["task_runs"].value == tenfold["task_runs"].value <= 2_000
    assert plan["processes"].value == tenfold["processes"].value


def test_fast_servers_and_large_images_need_workers() -> None:
    slow, fast = found(10**6, gpus=1), found(10**6, gpus=100)
    assert (slow["processes"].value, slow["processes"].note) == (1, "without --workers")
    assert fast["processes"].value > 1
    assert fast["processes"].note == f"--workers {fast['processes'].value}"
    assert "worker_memory" in fast
    assert slow["processes_large"].value < fast["processes_large"].value
    assert fast["cores_large"].value > 10 * fast["cores"].value
    runs = ceil(fast["processes_large"].value / MAX_WORKERS)
    assert f"{runs} runs of parts of the dataset" in fast["processes_large"].note
    assert f"--workers {MAX_WORKERS}" in fast["processes_large"].note


def test_more_servers_than_one_run_can_feed_are_named() -> None:
    offered = 2.5 * ceiling()
    plan = found(10**8, rate=offered, gpus=1)
    assert plan["seconds"].value == pytest.approx(10**8 / ceiling())
    assert plan["seconds"].basis == "extrapolated"
    assert "make 3 runs of parts of the dataset" in plan["seconds"].note


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, "s", "0.25 s"),
        (90, "s", "90.0 s"),
        (600, "s", "10.0 min"),
        (12_345, "s", "3.4 h"),
        (500_000, "s", "5.8 days"),
        (2_048, "MiB", "2.0 GiB"),
        (51.1e9, "bytes", "51.1 GB"),
        (2_147.3, "requests", "2,147"),
        (0.0123, "USD", "$0.01"),
    ],
)
def test_values_are_written_as_people_do(value: float, unit: str, text: str) -> None:
    assert Figure("name", "label", value, unit, "computed").text == text


def test_the_table_marks_what_is_extrapolated_and_numbers_what_was_measured() -> None:
    lines = sizes_table([10**4, 10**8], 30, 30).splitlines()
    (memory,) = [line for line in lines if "memory of the run" in line]
    few, many, number = (cell.strip() for cell in memory.strip("|").split("|")[1:])
    assert not few.startswith("~")
    assert many.startswith("~")
    assert f"{number}. {slopes.RUN_MEMORY.source}" in lines


def test_a_dataset_is_counted_or_planned_for_the_rows_that_are_given(
    call: Call, tmp_path: Path
) -> None:
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps({"image": f"{row}.jpg"}) + "\n" for row in range(7)))
    code, out, _ = call("plan", str(dataset), *GPUS, "--json")
    assert code == 0
    plan = json.loads(out)
    assert (plan["rows"], plan["rate"], plan["gpus"]) == (7, 30, 30)
    assert {"name", "value", "unit", "basis", "source"} <= plan["figures"][0].keys()
    assert json.loads(call("plan", str(dataset), *GPUS, "--rows=9000", "--json")[1])["rows"] == 9000


def test_lines_name_value_basis_and_what_was_measured(call: Call) -> None:
    code, out, err = call("plan", "--rows=9000000", *GPUS)
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == "9,000,000 rows"
    first_line = "83.3 h GPU hours computed 30 requests/s for each of 30"
    assert " ".join(lines[0].split()) == first_line
    (memory,) = [line for line in lines if "memory of the run" in line]
    number = memory.partition("extrapolated ")[2].split()[0]
    assert f"{number} {slopes.RUN_MEMORY.source}" in lines


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["nope.json", *GPUS], 1, "nope.json: no such file or folder"),
        (["nope.json", *GPUS, "--rows=3"], 1, "nope.json: no such file or folder"),
        (GPUS, 2, "give a dataset, or --rows"),
        (["--rows=3", "--rate-per-gpu=inf", "--gpus=1"], 2, "--rate-per-gpu must be a number"),
        (["--rows=3", "--rate-per-gpu=0", "--gpus=1"], 2, "--rate-per-gpu"),
        (["--rows=3", "--rate-per-gpu=3", "--gpus=0"], 2, "--gpus"),
        (["--rows=0", *GPUS], 2, "--rows"),
        (["--rows=3", "--gpus=1"], 2, "--rate-per-gpu is missing: see prefect-imageqa plan --help"),
        (["a", "b", *GPUS], 2, "unexpected 'b': repeat an option for each value, and quote"),
    ],
)
def test_bad_input_gets_one_line(call: Call, arguments: list[str], code: int, reason: str) -> None:
    found_code, out, err = call("plan", *arguments)
    assert (found_code, out) == (code, "")
    assert reason in err
    assert len(err.splitlines()) == 1
