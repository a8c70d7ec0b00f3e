"""Fixtures shared by the tests of several steps."""

from pathlib import Path

import pytest
from prefect_imageqa.tasks.object_store.store import ObjectStore


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
