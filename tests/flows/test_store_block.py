"""S3 credentials from a Prefect block: used for all of a run, and never shown."""

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect_imageqa import Caching, ImageQAError, ObjectStore, Parsing, image_qa

SECRET = "test-secret"


@pytest.fixture
def block(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a saved block; the environment knows nothing any more."""
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


def holders_of_the_secret() -> set[str]:
    """Names of the saved blocks that hold it."""
    with get_client(sync_client=True) as client:
        documents = client.read_block_documents(include_secrets=True, limit=200)
    return {str(document.name) for document in documents if SECRET in str(document.data)}


def test_a_block_opens_dataset_images_output_and_cache(
    stub: Any, s3: str, block: str, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = holders_of_the_secret() - {block}  # of other tests on this Prefect server
    place = ObjectStore.load(block).with_uri(f"{s3}/{block}")  # type: ignore[union-attr]
    for path in (drawn / "images").iterdir():
        place.write(f"data/images/{path.name}", path.read_bytes())
    place.write("data/dataset.json", (drawn / "dataset.json").read_bytes())

    def ask(**changed: Any) -> Any:
        return image_qa(
            f"{place.uri}/data/dataset.json",
            f"{place.uri}/out",
            endpoint=stub.url,
            store=block,
            caching=Caching(cache=f"{place.uri}/cache"),
            **changed,
        )

    with caplog.at_level(logging.DEBUG, logger="prefect"):
        first = ask()
        again = ask(parsing=Parsing(require_pairs=False))
    assert (first.ok, first.requests, again.ok, again.requests) == (12, 12, 12, 0)
    assert len(first.to_pandas()) == 12
    assert SECRET not in caplog.text
    assert all(SECRET.encode() not in place.read(name) for name in place.list())
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=200)
    assert SECRET not in json.dumps([run.model_dump(mode="json") for run in runs])
    assert holders_of_the_secret() - others == {block}


def test_an_unknown_block_is_one_clear_line(stub: Any, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageQAError, match="there is no Image QA Store block named 'nope'"):
        image_qa(
            str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=stub.url, store="nope"
        )
