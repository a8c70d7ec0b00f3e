"""Formats that trainers load: conversations about images, written from `pairs.parquet`.

In: the pairs of an output, and the dataset, which has the images. Out: `export/<format>/`.
"""

from .formats import FORMATS
from .write import ExportSource, export_for_training, write_export

__all__ = ["FORMATS", "ExportSource", "export_for_training", "write_export"]
