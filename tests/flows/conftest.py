"""What the tests of flows share: a Prefect server, and a dataset of drawn images."""

from pathlib import Path

import pytest
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset


@pytest.fixture(scope="session", autouse=True)
def _on_prefect_server(prefect_server: None) -> None:
    """Every flow runs on the tests' own Prefect server."""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with `dataset.json` of 12 rows and their images."""
    folder = tmp_path / "drawn"
    write_demo_dataset(folder, 12, seed=5)
    return folder
