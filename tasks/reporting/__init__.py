"""Report: a finished output -> `report.html`, the dataset card, and artifacts for Prefect's UI."""

from .report import make_report, render_report
from .samples import SampledRow, sample_rows

__all__ = ["SampledRow", "make_report", "render_report", "sample_rows"]
