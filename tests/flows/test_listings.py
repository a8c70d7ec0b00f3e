"""What a run lists of its output: on S3, a folder of 100,000 objects takes 100 requests."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import Exports, Limits, image_qa
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.storing import compaction


@pytest.mark.usefixtures("with_report")
def test_a_run_lists_no_folder_of_many_objects_twice(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a first run, with a compaction, nor one with more rows, nor one without any."""
    monkeypatch.setattr(compaction, "MAX_SMALL_PARTS", 3)
    output, listed = tmp_path / "out", Counter[str]()
    sizes = ObjectStore.sizes

    def counted(store: ObjectStore, folder: str = "", *, deep: bool = True) -> dict[str, int]:
        found = sizes(store, folder, deep=deep)
        if deep and found:
            listed[f"{store.uri}/{folder}".removeprefix(f"{output}/").rstrip("/")] += 1
        return found

    monkeypatch.setattr(ObjectStore, "sizes", counted)
    rows = json.loads((drawn / "dataset.json").read_text())
    growing = ("pairs/parts/qa_pairs-v3", "pairs/completions", "export/llava")
    for count, requests, parts in ((8, 8, 1), (12, 4, 3), (12, 0, 3)):
        (drawn / "dataset.json").write_text(json.dumps(rows[:count]))
        listed.clear()
        summary = image_qa(
            str(drawn / "dataset.json"),
            str(output),
            stub.url,
            limits=Limits(batch_size=2),
            exports=Exports(formats=("llava",)),
        )
        assert summary.requests == requests
        assert len(list((output / "pairs" / "parts").rglob("*.parquet"))) == parts
        assert listed.pop("runs")
        assert listed == (dict.fromkeys(growing, 1) if count > 8 else {})
