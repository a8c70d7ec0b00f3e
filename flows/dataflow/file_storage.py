"""`FileStorage`: DataFlow's numbered step files, on a local path or S3."""

import json
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pandas as pd

from ...serving.errors import ImageQAError
from ...tasks.errors import StoreError
from ...tasks.exporting.qa_json import dump_record, json_default
from ...tasks.loading.columns import Columns
from ...tasks.loading.load import open_dataset
from ...tasks.loading.table_formats import to_python
from ...tasks.object_store.store import ObjectStore

CacheType = Literal["json", "jsonl", "csv", "parquet"]


class FileStorage:
    """The table of a pipeline, one file per step: `<cache_path>/<prefix>_step<N>.<type>`.

    Step 0 is the first entry file; an operator reads the current step and writes the next.

    Args:
        first_entry_file_name: the first table, in any format that `image_qa` reads.
        cache_path: folder of the step files, local or `s3://`.
        file_name_prefix: prefix of their names.
        cache_type: their format.
    """

    def __init__(
        self,
        first_entry_file_name: str,
        cache_path: str = "./cache",
        file_name_prefix: str = "dataflow_cache",
        cache_type: CacheType = "jsonl",
    ) -> None:
        if cache_type not in get_args(CacheType):
            known = ", ".join(get_args(CacheType))
            raise ImageQAError(f"cache_type is {cache_type!r}; it must be one of {known}")
        self.first_entry_file_name = first_entry_file_name
        self.cache_path = cache_path
        self.file_name_prefix = file_name_prefix
        self.cache_type = cache_type
        self.operator_step = -1

    def step(self) -> Self:
        """Advance to the next step; call it before each operator."""
        self.operator_step += 1
        return self

    def reset(self) -> Self:
        """Go back to before the first step."""
        self.operator_step = -1
        return self

    def current(self) -> str:
        """Path or URI of the table that the current step reads."""
        if self.operator_step < 0:
            raise ImageQAError("call storage.step() before the first operator")
        if self.operator_step == 0:
            return self.first_entry_file_name
        return self._path(f"{self._name(self.operator_step)}.{self.cache_type}")

    def work_folder(self) -> str:
        """Path or URI of a folder for other files of the step."""
        return self._path(self._next_name())

    def read(self, output_type: Literal["dataframe", "dict"] = "dataframe") -> Any:
        """The current table, as a DataFrame or a list of records.

        Columns hold plain Python values (`dtype` object), so that values are written as they were
        read; cells of CSV are text. A line that is not JSON becomes a row of nulls: the number of
        rows never changes.

        Raises:
            DatasetError: the table is missing, empty or unreadable.
        """
        as_it_is = Columns(image=None, conversation=None)
        source = open_dataset(self.current(), as_it_is, require_images=False)
        records = [dict(row.record) for row in source.rows()]
        if output_type == "dict":
            return records
        columns = list(dict.fromkeys(name for record in records for name in record))
        cells = [[record.get(name) for name in columns] for record in records]
        return pd.DataFrame(cells, columns=columns, dtype=object)

    def write(self, table: pd.DataFrame | list[dict[str, Any]]) -> str:
        """Write the table of the next step atomically; returns its path or URI.

        Raises:
            StoreError: it cannot be written, or the format cannot represent it.
        """
        # Without `dtype=object`, pandas would convert integers to floats if one is missing.
        frame = pd.DataFrame(table, dtype=object) if isinstance(table, list) else table
        name = f"{self._next_name()}.{self.cache_type}"
        try:
            data = _encode(frame, self.cache_type)
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
            raise StoreError(
                f"{name}: the table cannot be written as {self.cache_type}: {error}"
            ) from None
        ObjectStore(uri=self.cache_path).write(name, data)
        return self._path(name)

    def write_quarantine(self, lines: bytes) -> None:
        """Write the reasons why rows of the next step have no answer, next to its table."""
        name = f"{self._next_name()}.quarantine.jsonl"
        ObjectStore(uri=self.cache_path).write(name, lines)

    def _next_name(self) -> str:
        self.current()  # step() must have been called
        return self._name(self.operator_step + 1)

    def _name(self, step: int) -> str:
        return f"{self.file_name_prefix}_step{step}"

    def _path(self, name: str) -> str:
        if "://" in self.cache_path:
            return f"{self.cache_path.rstrip('/')}/{name}"
        return str(Path(self.cache_path) / name)


def _encode(frame: pd.DataFrame, cache_type: CacheType) -> bytes:
    if cache_type == "parquet":
        return frame.to_parquet(index=False)
    records = [
        {str(name): to_python(value) for name, value in record.items()}
        for record in frame.to_dict(orient="records")
    ]
    if cache_type == "csv":
        cells = [{name: _cell(value) for name, value in record.items()} for record in records]
        columns = [str(name) for name in frame.columns]
        return pd.DataFrame(cells, columns=columns, dtype=object).to_csv(index=False).encode()
    lines = [dump_record(record) for record in records]
    if cache_type == "jsonl":
        return b"".join(line + b"\n" for line in lines)
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def _cell(value: Any) -> Any:
    """Lists and objects are written to CSV as JSON, as which a run reads images and turns."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=json_default)
    return json_default(value) if isinstance(value, bytes) else value
