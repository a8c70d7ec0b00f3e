"""What the tests of flows share: a Prefect server, and a dataset of drawn images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    """A real Prefect server with an empty database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with `dataset.json` of 12 rows and their images."""
    folder = tmp_path / "drawn"
    write_demo_dataset(folder, 12, seed=5)
    return folder
