"""The record of a run that has not started yet."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..tasks.prompting.keys import configuration_key
from ..tasks.runs.heartbeat import this_process
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import Pass
from ..tasks.runs.run_record import RunRecord


def new_record(run_id: str, parameters: RunParameters, dataset: str, main: Pass) -> RunRecord:
    """The record of a run that has not started yet; `dataset` is its short name."""
    now = datetime.now(UTC)
    packages = ("prefect-imageqa", "prefect", "pandas", "pillow")
    return RunRecord(
        run=run_id,
        state="waiting",
        dataset=dataset,
        user_prompt=main.user_prompt,
        parser=main.parsing.label,
        **this_process(),
        queued=now,
        started=now,
        updated=now,
        versions={name: version(name) for name in packages},
        parameters=parameters,
    )


def dataset_key(parameters: RunParameters) -> str:
    """Digest of a dataset's path, or of a DataFrame's columns and first row."""
    dataset = parameters.dataset
    name = str(dataset) if isinstance(dataset, str | Path) else _frame_name(dataset)
    return configuration_key({"dataset": name, "limited": parameters.max_rows is not None})


def _frame_name(frame: Any) -> str:
    """Identifies a DataFrame by its columns and first row: these stay as rows are added."""
    first = frame.iloc[0].tolist() if len(frame) else []
    cells = [
        repr(cell) if isinstance(cell, str | int | float) else type(cell).__name__ for cell in first
    ]
    return json.dumps([[str(column) for column in frame.columns], cells])
