"""Hashes of images by their identities, remembered in an output: no image is decoded twice."""

import hashlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from ..storing.parts import reported_corruption
from .image_hashes import HASH, HASH_VERSION, Array

DATASET_HASHES = "checks/duplicates/hashes.parquet"
BENCHMARK_HASHES = "checks/contamination/hashes.parquet"

_IDENTITY_BYTES = 16
_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(_IDENTITY_BYTES), False),
        pa.field("hash", pa.binary(HASH.itemsize), False),
    ],
    metadata={"version": str(HASH_VERSION)},
)
_PER_GROUP = 4096
_MAX_REMEMBERED = 2_000_000
"""Further hashes are not read: these take 2 GB of memory."""

_LOGGER = logging.getLogger("prefect_imageqa.checking")


class KnownHashes:
    """The hashes of images, about 950 bytes of memory each. Only reading is thread-safe.

    Images are numbered in the order in which they are added.

    Args:
        store: the output.
        name: of the object that remembers them.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self._numbers: dict[bytes, int] = {}
        self._records = bytearray()
        self._saved = 0

    @property
    def hashes(self) -> Array:
        """An array of `HASH`; as long as it is used, no image can be added."""
        return np.frombuffer(self._records, HASH)

    def number(self, identity: str) -> int | None:
        """The number of an image; None if it is not known."""
        return self._numbers.get(_digest(identity))

    def add(self, identity: str, record: bytes) -> int:
        """Add an image with its hash, unless it is known; returns its number."""
        return self._add(_digest(identity), record)

    def _add(self, digest: bytes, record: bytes) -> int:
        number = self._numbers.setdefault(digest, len(self._numbers))
        if number * HASH.itemsize == len(self._records):
            self._records += record
        return number

    @classmethod
    def read(cls, store: ObjectStore, name: str) -> "KnownHashes":
        """Those of an output; none if it has none, or other ones than this version makes.

        Raises:
            StoreError: the output cannot be read.
        """
        known = cls(store, name)
        try:
            with reported_corruption(store, name, "its images are hashed again"):
                known._read()
        except ObjectMissingError:
            pass
        except ObjectCorruptedError as error:
            _LOGGER.warning("%s", error)
            known = cls(store, name)
        known._saved = len(known._numbers)
        return known

    def _read(self) -> None:
        with self._store.open(self._name) as source:
            size = source.seek(0, io.SEEK_END)
            file = pq.ParquetFile(pa.PythonFile(source, mode="r"))
            metadata, schema = file.metadata, file.schema_arrow
            if not schema.equals(_SCHEMA, check_metadata=True):
                return
            # A few kilobytes could claim millions of equal rows.
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            if metadata.num_rows * HASH.itemsize > size:
                raise ValueError("more hashes than bytes")
            if any(group.num_rows > _PER_GROUP for group in groups):
                raise ValueError("a row group that is too large")
            for batch in file.iter_batches(_PER_GROUP, use_threads=False):
                batch.validate(full=True)
                if any(column.null_count for column in batch.columns):
                    raise ValueError("a hash is missing")
                for digest, record in zip(*map(pa.Array.to_pylist, batch.columns), strict=True):
                    if len(self._numbers) >= _MAX_REMEMBERED:
                        return
                    self._add(digest, record)

    def save(self) -> None:
        """Write them to the output, if there are new ones.

        Raises:
            StoreError: the output cannot be written.
        """
        if len(self._numbers) == self._saved:
            return
        with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
            path = Path(folder) / "hashes.parquet"
            # Each hash takes its own bytes in the file: `_read` relies on it.
            with pq.ParquetWriter(
                path, _SCHEMA, compression="none", use_dictionary=False, write_statistics=False
            ) as writer:
                for batch in self._batches():
                    writer.write_batch(batch)
            self._store.put(self._name, path)
        self._saved = len(self._numbers)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        digests, records = list(self._numbers), self.hashes
        for start in range(0, len(digests), _PER_GROUP):
            some = slice(start, start + _PER_GROUP)
            columns = digests[some], [record.tobytes() for record in records[some]]
            arrays = map(pa.array, columns, _SCHEMA.types)
            yield pa.record_batch(list(arrays), schema=_SCHEMA)


def _digest(identity: str) -> bytes:
    content = identity.encode(errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=_IDENTITY_BYTES).digest()
