"""Tables of pairs that were checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS_SCHEMA
from prefect_imageqa.tasks.object_store.store import ObjectStore

CHECKS = (
    pa.field("consistency", pa.float64()),
    pa.field("consistency_answer", pa.string()),
    pa.field("blind_answerable", pa.bool_()),
)
TRUTH = pa.field("is_right", pa.bool_())


def table_of(lines: Sequence[Mapping[str, Any]], *fields: pa.Field) -> pa.Table:
    """A table of pairs, two of each row; what a line does not say is the same in all."""
    schema = pa.schema([*PAIRS_SCHEMA, *fields])
    return pa.Table.from_pylist(
        [
            {
                "row": number // 2,
                "key": f"{number // 2:032x}",
                "pair": number % 2,
                "image": [f"{number // 2}.png"],
                "question": f"What is it, number {number}?",
                "answer": "A cat.",
                "image_digest": f"digest {number // 2}",
                **line,
            }
            for number, line in enumerate(lines)
        ],
        schema,
    )


def write(store: ObjectStore, name: str, table: pa.Table, group: int = 3) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=group)
    store.write(name, sink.getvalue().to_pybytes())
