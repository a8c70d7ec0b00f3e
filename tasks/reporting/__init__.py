"""Report: an output -> what people look at.

In: a finished output. Out: `report.html`, the dataset card, and the Markdown and tables that
Prefect's UI shows.
"""

from .report import make_report, render_report
from .samples import SampledRow, sample_rows

__all__ = ["SampledRow", "make_report", "render_report", "sample_rows"]
