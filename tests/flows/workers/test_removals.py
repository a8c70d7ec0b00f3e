"""Somebody else removes what a run and its workers have written, while they work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import Limits, ObjectStore, Workers, image_qa
from prefect_imageqa.flows.workers import member
from prefect_imageqa.flows.workers.channel import Channel, remove_messages
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.storing.store import read_part

ROWS = 200


def test_no_row_is_lost_asked_again_or_waited_for(
    write_rows: Callable[[list[str]], str],
    start_stub: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(member, "MAX_UNKNOWN", 3)
    stub, output = start_stub(latency=0.3), ObjectStore(uri=str(tmp_path / "out"))
    removed: list[str] = []
    unread: list[str] = []

    def write_all_but_one(channel: Channel, name: str, *message: Any, **options: Any) -> None:
        if "/batch-" in name and not unread:
            unread.append(name)  # removed before its worker reads it
        else:
            write(channel, name, *message, **options)

    def first_is_removed(store: ObjectStore, name: str) -> Any:
        if not removed:
            removed.append(name)
            store.remove(name)
            remove_messages(store)
        return read_part(store, name)

    write = Channel.write
    monkeypatch.setattr(Channel, "write", write_all_but_one)
    monkeypatch.setattr("prefect_imageqa.flows.workers.answer.read_part", first_is_removed)
    summary = image_qa(
        write_rows([f"Row {row}?" for row in range(ROWS)]),
        output.uri,
        stub.url,
        limits=Limits(batch_size=16, max_in_flight=32),
        workers=Workers(workers=2),
    )
    assert removed
    assert unread
    assert "is given to a worker again: somebody else has removed" in caplog.text
    assert (summary.ok, stub.stats()["requests"]) == (ROWS, ROWS)
    assert not verify(output).problems
    assert not output.list("workers")
