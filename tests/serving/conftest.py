"""What the tests of serving share."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session")
def prefect_blocks() -> Iterator[None]:
    """A real Prefect server with an empty database, to save blocks in."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
