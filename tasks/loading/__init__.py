"""Load: a dataset (a URI or a DataFrame) -> rows.

In: a JSON, CSV or Parquet table, a folder or glob of images, or a pandas DataFrame. Out: a
`Dataset`, which reads its rows lazily, each time anew; a record that cannot be read is a row with
its problem, not an error.
"""

from .columns import Columns
from .dataset import Dataset, load_dataset

__all__ = ["Columns", "Dataset", "load_dataset"]
