"""Names of flow runs and task runs: short, and without secrets."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa.tasks.generating.batching import make_batch
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase
from prefect_imageqa.tasks.loading.load import load_run_name
from prefect_imageqa.tasks.prompting.keys import RequestSpec
from prefect_imageqa.tasks.prompting.prompts import PromptSettings, prompt_run_name
from prefect_imageqa.tasks.records import Row
from prefect_imageqa.tasks.run_names import short_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/capsbench.json", "capsbench.json"),
        (Path("/data/images/"), "images"),
        ("s3://bucket/sets/day 1.parquet", "day 1.parquet"),
        ("s3://key:secret@bucket", "bucket"),
        ("https://user:secret@host/x.json?token=secret#secret", "x.json"),
        ("/data/images/*.png", "images/*.png"),
        ("/data/two\nlines.csv", "two_lines.csv"),
        ("/", "dataset"),
        ("x" * 99, "x" * 59 + "…"),
        (pd.DataFrame({"secret": [1]}), "DataFrame"),
    ],
)
def test_a_source_is_named_by_its_last_part(source: Any, name: str) -> None:
    assert short_name(source) == name


def test_task_runs_are_named_by_dataset_check_and_rows() -> None:
    rows = [Row(index, {}, "") for index in range(256, 512)]
    assert load_run_name({"dataset": "/data/qa.json"}) == "load-qa.json"
    spec = RequestSpec("m", "", {}, {})
    for label, name in {"": "prompt-256-511", "blind": "prompt-blind-256-511"}.items():
        settings = PromptSettings(ImageBase(), ImageReader(1), spec, label=label)
        assert prompt_run_name({"rows": rows, "settings": settings}) == name
        assert str(make_batch(2, [], label=label)) == f"{label}-2".strip("-")
