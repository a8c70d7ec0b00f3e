"""Export the results of a run: the dataset's rows joined with their answers.

In: a dataset and the ledger. Out: `qa.jsonl`, `pairs.parquet` and `quarantine.jsonl`. Also the
status, verification and clean-up of an output.
"""

from .export import export_rows

__all__ = ["export_rows"]
