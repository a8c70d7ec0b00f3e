"""Reads the Parquet exports in bounded memory, whatever the file says.

A few kilobytes may hold a long text once and refer to it from millions of rows. So texts are read
as references to their distinct values, and only as many are looked up at once as fit a budget.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..object_store.store import ObjectStore
from ..storing.key_index import Array
from .pairs_parquet import dataset_fields

MAX_ROW_BYTES = 128 << 20
"""Texts of a row: twice the longest reply that is read from a server."""

_BATCH_BYTES = 16 << 20
"""Texts of a batch; a longer row is a batch of its own."""

_MAX_GROUP_BYTES = 256 << 20
_MAX_GROUP_VALUES = 1 << 24
"""Limits of a column in a row group, which is read at once: those of an export are far below."""


def bounded_batches(
    store: ObjectStore,
    name: str,
    own: pa.Schema,
    columns: Sequence[str] | None = None,
    rows_per_batch: int = 4096,
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet export, validated, in batches of bounded size.

    Args:
        store: the output.
        name: the export.
        own: its own columns, before those of the dataset.
        columns: those that are read; by default all.
        rows_per_batch: a limit.

    Raises:
        pyarrow.ArrowException, ValueError: the file is corrupted.
        StoreError: it cannot be read.
    """
    with store.open(name) as source:
        file = pq.ParquetFile(pa.PythonFile(source, mode="r"))
        dataset_fields(file.schema_arrow, own)
        metadata, schema = file.metadata, file.schema
        leaves = [schema.column(number) for number in range(len(schema))]
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                too_large = chunk.total_uncompressed_size > _MAX_GROUP_BYTES
                if too_large or chunk.num_values > _MAX_GROUP_VALUES:
                    raise ValueError("a row group that no export has")
        file = pq.ParquetFile(
            pa.PythonFile(source, mode="r"),
            metadata=metadata,
            read_dictionary=[leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"],
            pre_buffer=True,
        )
        # A batch over the end of a group would have two dictionaries, which lists cannot have.
        for group in range(metadata.num_row_groups):
            batches = file.iter_batches(
                rows_per_batch, row_groups=[group], columns=columns, use_threads=False
            )
            for batch in batches:
                batch.validate(full=True)
                yield from _looked_up(batch)


def text_bytes(array: pa.Array) -> Array:
    """Bytes of the texts in each row of a column."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
    elif pa.types.is_string(kind):
        lengths = pc.binary_length(array)
    elif pa.types.is_list(kind):
        ends = np.cumsum(_lengths(array))
        before = np.concatenate([[0], np.cumsum(text_bytes(array.flatten()))])
        sums: Array = np.diff(before[np.concatenate([[0], ends])])
        return sums
    else:
        return np.zeros(len(array), np.int64)
    return _integers(lengths)


def _looked_up(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a batch, with texts in place of references."""
    sizes = sum(map(text_bytes, batch.columns), np.zeros(len(batch), np.int64))
    if len(batch) and sizes.max() > MAX_ROW_BYTES:
        raise ValueError("a row longer than any reply")
    ends, start = np.cumsum(sizes), 0
    while start < len(batch):
        read = ends[start] - sizes[start]
        end = max(start + 1, int(np.searchsorted(ends, read + _BATCH_BYTES, "right")))
        part = batch.slice(start, end - start)
        arrays = list(map(_texts, part.columns))
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
        start = end


def _texts(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_list(array.type):
        offsets = np.concatenate([[0], np.cumsum(_lengths(array))])
        values = _texts(array.flatten())
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=array.is_null())
    return array


def _lengths(array: pa.ListArray) -> Array:
    return _integers(pc.list_value_length(array))


def _integers(array: pa.Array) -> Array:
    integers: Array = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return integers
