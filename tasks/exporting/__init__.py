"""Export: the dataset's rows joined with their answers -> the files that users take away.

In: a dataset and the ledger. Out: `qa.jsonl`, `pairs.parquet`, `quarantine.jsonl`; also the
status of an output, its verification and its clean-up.
"""

from .export import export_rows

__all__ = ["export_rows"]
