"""Hashes that are remembered in an output."""

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.checking import known_hashes
from prefect_imageqa.tasks.checking.image_hashes import HASH
from prefect_imageqa.tasks.checking.known_hashes import DATASET_HASHES, KnownHashes
from prefect_imageqa.tasks.object_store.store import ObjectStore


def record(number: int) -> bytes:
    return np.random.default_rng(number).bytes(HASH.itemsize)


def known_images(store: ObjectStore, count: int) -> KnownHashes:
    known = KnownHashes.read(store, DATASET_HASHES)
    for number in range(count):
        known.add(f"sha256:{number}", record(number))
    return known


def test_hashes_are_read_as_they_were_saved(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "_PER_GROUP", 7)
    known_images(store, 20).save()
    known = KnownHashes.read(store, DATASET_HASHES)
    assert [known.number(f"sha256:{number}") for number in range(21)] == [*range(20), None]
    assert known.hashes.tobytes() == b"".join(map(record, range(20)))
    assert known.add("sha256:3", b"") == 3
    assert known.add("etag:\ud800", record(99)) == 20
    known.save()
    assert len(KnownHashes.read(store, DATASET_HASHES).hashes) == 21


def test_nothing_is_written_without_new_hashes(local: ObjectStore) -> None:
    KnownHashes.read(local, DATASET_HASHES).save()
    assert not local.exists(DATASET_HASHES)
    known_images(local, 3).save()
    stamp = local.stamp(DATASET_HASHES)
    known_images(local, 3).save()
    assert local.stamp(DATASET_HASHES) == stamp


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=4000)
    return file.getvalue()


def many_equal_rows() -> bytes:
    """A small file of two million rows."""
    schema, count = known_hashes._SCHEMA, 200_000
    columns = [
        pa.repeat(pa.scalar(b"a" * field.type.byte_width, field.type), count) for field in schema
    ]
    return parquet(pa.table(columns, schema=schema))


@pytest.mark.parametrize("what", ["text", "cut", "claims"])
def test_a_damaged_file_is_made_again(
    what: str, local: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    known_images(local, 3).save()
    path = Path(local.uri_of(DATASET_HASHES))
    data = {"text": b"no Parquet", "cut": path.read_bytes()[:-40], "claims": many_equal_rows()}[
        what
    ]
    assert len(data) < 1_000_000
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        known = known_images(local, 2)
    assert "hashes.parquet is corrupted" in caplog.text
    assert len(known.hashes) == 2
    known.save()
    assert len(KnownHashes.read(local, DATASET_HASHES).hashes) == 2


def test_hashes_of_another_version_are_not_used(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = known_hashes._SCHEMA.with_metadata({"version": "0"})
    monkeypatch.setattr(known_hashes, "_SCHEMA", other)
    known_images(local, 3).save()
    monkeypatch.undo()
    assert not len(KnownHashes.read(local, DATASET_HASHES).hashes)
