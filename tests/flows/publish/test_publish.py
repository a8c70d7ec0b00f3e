"""An output on S3 is an asset in Prefect."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import ObjectStore, image_qa
from prefect_imageqa.tasks.loading.recorded_rows import RecordedRows
from prefect_imageqa.tasks.reporting.row_images import RowImages

MATERIALIZED = "prefect.asset.materialization.succeeded"


def materializations(asset: str) -> list[dict[str, Any]]:
    """The materialization events of an asset, as soon as there is one."""
    wanted = {"event": {"name": [MATERIALIZED]}, "resource": {"id": [asset]}}
    deadline = time.monotonic() + 120
    while True:
        reply = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json={"filter": wanted})
        events: list[dict[str, Any]] = reply.raise_for_status().json()["events"]
        if events or time.monotonic() > deadline:
            return events
        time.sleep(0.2)


def test_an_output_on_s3_is_an_asset_with_its_counts(
    stub: Any, drawn: Path, s3: str, tmp_path: Path
) -> None:
    folder = f"{s3}/{tmp_path.name}"
    data = ObjectStore(uri=folder)
    data.write("rows.json", b'[{"image": "a.png"}, {"image": "missing.png"}]')
    data.write("a.png", (drawn / "images" / "000.png").read_bytes())
    image_qa(f"{folder}/rows.json", f"{folder}/qa", endpoint=stub.url)
    [event] = materializations(f"{folder}/qa")
    counts = {"rows": 2, "ok": 1, "filtered": 0, "quarantined": 1}
    assert event["payload"] == counts | {"pairs": 1, "filtered_pairs": 0}
    roles = {related["prefect.resource.role"] for related in event["related"]}
    assert {"asset", "flow-run", "task-run"} <= roles
    upstream = {related["prefect.resource.id"] for related in event["related"]}
    assert f"{folder}/rows.json" in upstream


def test_thumbnails_are_made_while_the_rows_are_asked(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards, the end of the run would wait for them; a run that asks nothing makes none."""
    events = list[str]()
    for owner, name in ((RecordedRows, "read_again"), (RowImages, "_start")):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name), events))
    for _ in range(2):
        image_qa(str(drawn / "images"), str(tmp_path / "out"), endpoint=stub.url, max_rows=3)
    assert events == ["_start", "_start", "_start", "read_again", "read_again"]


def noted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        calls.append(function.__name__)
        return function(*args)

    return call


def test_outputs_need_not_be_assets(stub: Any, drawn: Path, tmp_path: Path, s3: str) -> None:
    """Neither a local path nor a URI with a space is a valid key of an asset."""
    for name in ("first", "with a space"):
        for folder in (str(tmp_path), f"{s3}/{tmp_path.name}"):
            dataset = str(drawn / "dataset.json")
            assert image_qa(dataset, f"{folder}/{name}", endpoint=stub.url, max_rows=2).ok == 2
