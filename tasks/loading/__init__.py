"""Load: a dataset (a URI or a DataFrame) -> rows.

In: a JSON, CSV, Parquet, Arrow or WebDataset table, a folder of images, or a DataFrame. Out: a
`Dataset`, which streams its rows from the source on every pass; a record that cannot be read
becomes a row with a problem, not an error.
"""

from .columns import Columns
from .dataset import Dataset
from .load import load_dataset

__all__ = ["Columns", "Dataset", "load_dataset"]
