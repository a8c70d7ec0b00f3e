"""What the tests of several steps share."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.parameters import (
    Caching,
    Columns,
    Exports,
    Images,
    Limits,
    Parsing,
    RunParameters,
    Sampling,
)
from prefect_imageqa.tasks.run_records import RunRecord


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty output, in a folder and on S3."""
    if request.param == "local":
        return ObjectStore(uri=str(tmp_path / "out"))
    bucket: str = request.getfixturevalue("s3")
    return ObjectStore(uri=f"{bucket}/{tmp_path.name}")


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    """An empty output in a folder."""
    return ObjectStore(uri=str(tmp_path / "out"))


@pytest.fixture
def record_of() -> Callable[..., RunRecord]:
    """Makes the record of a run on another machine: `record_of(state="running", ago=5)`.

    Its last heartbeat was `ago` seconds ago; `told` changes its parameters, other names its fields.
    """

    def make(ago: float = 300, told: dict[str, Any] | None = None, **changed: Any) -> RunRecord:
        then = datetime.now(UTC) - timedelta(seconds=ago)
        parameters: dict[str, Any] = {
            "dataset": "/data/d.json",
            "prompt_style": "chat",
            "pairs_per_image": 1,
            "max_rows": None,
            "system_prompt": "",
            "user_prompt": "",
            "model": None,
            "model_revision": "",
            "sampling": Sampling(),
            "limits": Limits(),
            "columns": Columns(),
            "parsing": Parsing(),
            "caching": Caching(),
            "images": Images(),
            "exports": Exports(),
        }
        fields: dict[str, Any] = {
            "run": "0197-run",
            "state": "completed",
            "dataset": "d.json",
            "model": "m",
            "model_revision": "",
            "user_prompt": "Please.",
            "parser": "qa_pairs-v1",
            "configuration": "c",
            "keys": "pairs/keys/c/d",
            "host": "elsewhere",
            "machine": "0" * 16,
            "process": "7-7",
            "queued": then,
            "started": then,
            "updated": then,
            "versions": {},
            "told": RunParameters(**parameters | (told or {})),
        }
        return RunRecord.model_validate(fields | changed)

    return make
