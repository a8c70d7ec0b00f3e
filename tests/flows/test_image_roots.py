import json
from pathlib import Path

import pytest
from prefect_imageqa.flows.image_roots import confine_images
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import image_refs
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.records import Kind, RowError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset whose second image is a file of someone else."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"a")
    (tmp_path / "private.png").write_bytes(b"private")
    rows = [{"image": "a.png"}, {"image": f"{tmp_path}/private.png"}]
    path = tmp_path / "data" / "data.json"
    path.write_text(json.dumps(rows))
    return path


def read_images(dataset: Path, root: str | None) -> list[bytes | Kind]:
    """What a run reads of each row: the image, or the kind of problem."""
    found: list[bytes | Kind] = []
    with ImageReader(1000, root=root) as reader:
        table = confine_images(open_dataset(dataset, image_root=root), reader, root)
        for row in table.rows():
            try:
                (ref,) = image_refs(row.record["image"], table.base)
                found.append(reader.read(ref))
            except RowError as error:
                found.append(error.problem.kind)
    return found


def test_a_run_of_a_deployment_reads_only_images_in_the_folder_of_its_dataset(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    assert read_images(dataset, None) == [b"a", Kind.IMAGE_REFUSED]
    assert read_images(dataset, str(dataset.parent)) == [b"a", Kind.IMAGE_REFUSED]
    # A root that is given decides, and paths are relative to it.
    assert read_images(dataset, str(dataset.parents[1])) == [Kind.IMAGE_MISSING, b"private"]


def test_other_runs_read_what_their_user_can(dataset: Path) -> None:
    assert read_images(dataset, None) == [b"a", b"private"]


def test_a_link_made_later_does_not_lead_out_of_the_folder(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    with ImageReader(1000) as reader:
        table = confine_images(open_dataset(dataset), reader, None)
        (ref,) = image_refs("a.png", table.base)
        (dataset.parent / "a.png").unlink()
        (dataset.parent / "a.png").symlink_to(dataset.parents[1] / "private.png")
        with pytest.raises(RowError) as caught:
            reader.read(ref)
    assert caught.value.problem.kind is Kind.IMAGE_REFUSED
