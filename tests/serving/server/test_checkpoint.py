"""The digest of a checkpoint."""

from pathlib import Path

import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server.checkpoint import checkpoint_digest


def test_a_digest_depends_on_names_and_contents_of_model_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("a model card")
    assert checkpoint_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    second = checkpoint_digest(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "generation_config.json")
    assert len({first, second, checkpoint_digest(tmp_path)}) == 3
    assert len(first) == 64


@pytest.mark.parametrize("position", [0, 1024 * 1024 - 1, 70 * 1024 * 1024 - 1])
def test_a_digest_of_large_weights_includes_both_ends(position: int, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    first = checkpoint_digest(tmp_path)
    with weights.open("r+b") as file:
        file.seek(position)
        file.write(b"x")
    assert checkpoint_digest(tmp_path) != first


def test_a_folder_without_model_files_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="not a checkpoint"):
        checkpoint_digest(tmp_path)
