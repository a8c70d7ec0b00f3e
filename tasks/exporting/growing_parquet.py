"""A Parquet file whose columns and types are only known once all rows have been seen."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .dataset_columns import column_array


class GrowingFile:
    """Writes a Parquet file of tables whose schemas may differ; the last one's fits all.

    When the schema changes, the file is continued in another one; `finish` joins them.

    Args:
        path: the file.
        stack: closes it.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._segments: list[Path] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a table as a row group; an empty one only sets the schema."""
        if self._writer is None or table.schema != self._writer.schema:
            if self._writer is not None:
                self._writer.close()
            self._segments.append(self._path.with_suffix(f".{len(self._segments)}"))
            self._writer = self._stack.enter_context(_open(self._segments[-1], table.schema))
        if len(table):
            self._writer.write_table(table)

    def finish(self) -> None:
        """Complete the file; at least one table has been written."""
        writer = self._writer
        if writer is None:
            return
        writer.close()
        if len(self._segments) == 1:
            self._segments[0].rename(self._path)
            return
        with _open(self._path, writer.schema) as joined:
            for segment in self._segments:
                with pq.ParquetFile(segment) as file:
                    for group in range(file.metadata.num_row_groups):
                        table = file.read_row_group(group, use_threads=False)
                        joined.write_table(_converted(table, writer.schema))
                segment.unlink()


def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")


def _converted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of a schema that fits it."""
    columns: Mapping[str, pa.ChunkedArray] = dict(
        zip(table.column_names, table.columns, strict=True)
    )
    arrays = []
    for field in schema:
        column = columns.get(field.name)
        if column is None:
            arrays.append(pa.nulls(len(table), field.type))
        elif column.type == field.type:
            arrays.append(column)
        else:
            arrays.append(column_array(column.to_pylist(), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
