"""S3 credentials from a Prefect block: used for everything in a run, and never revealed."""

import json
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect_imageqa import Caching, ImageQAError, ObjectStore, Parsing, image_qa

SECRET = "test-secret"


@pytest.fixture
def block(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a saved block; the credentials are not in the environment."""
    name = f"block-{uuid.uuid4().hex[:8]}"
    saved: Any = ObjectStore(
        uri=s3,
        access_key_id="test-key",
        secret_access_key=SECRET,
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
    )
    saved.save(name)
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return name


def blocks_with_the_secret() -> set[str]:
    """Names of the saved blocks that contain it."""
    with get_client(sync_client=True) as client:
        documents = client.read_block_documents(include_secrets=True, limit=200)
    return {str(document.name) for document in documents if SECRET in str(document.data)}


@pytest.mark.usefixtures("with_report")
def test_a_block_gives_access_to_dataset_images_output_and_cache(
    stub: Any,
    s3: str,
    block: str,
    drawn: Path,
    runs_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = blocks_with_the_secret() - {block}  # created by other tests on this Prefect server
    store = ObjectStore.load(block).with_uri(f"{s3}/{block}")
    for path in (drawn / "images").iterdir():
        store.write(f"data/images/{path.name}", path.read_bytes())
    store.write("data/dataset.json", (drawn / "dataset.json").read_bytes())

    def run(**options: Any) -> Any:
        return image_qa(
            f"{store.uri}/data/dataset.json",
            f"{store.uri}/out",
            endpoint=stub.url,
            store=block,
            caching=Caching(cache=f"{store.uri}/cache"),
            **options,
        )

    with caplog.at_level(logging.DEBUG, logger="prefect"):
        first = run()
        again = run(parsing=Parsing(require_pairs=False))
    assert (first.ok, first.requests, again.ok, again.requests) == (12, 12, 12, 0)
    assert len(first.to_pandas()) == 12
    assert SECRET not in caplog.text
    assert all(SECRET.encode() not in store.read(name) for name in store.list())
    runs = runs_of(f"{store.uri}/out")
    assert len(runs) == 2
    assert SECRET not in json.dumps([run.model_dump(mode="json") for run in runs])
    assert blocks_with_the_secret() - others == {block}


def test_an_unknown_block_is_reported_in_one_line(stub: Any, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageQAError, match="there is no Image QA Store block named 'nope'"):
        image_qa(
            str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=stub.url, store="nope"
        )
