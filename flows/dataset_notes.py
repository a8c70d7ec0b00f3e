"""What the log says about the dataset of a run."""

from prefect import get_run_logger

from ..tasks.loading.columns import quoted
from ..tasks.loading.dataset import Dataset
from ..tasks.loading.recorded_rows import COUNTED_ROWS, RecordedRows
from ..tasks.prompting.open_style import OpenStyle


def note_columns(table: Dataset, style: OpenStyle) -> None:
    """Say at the start how the table is read, and which column the style does not see."""
    for note in table.notes:
        get_run_logger().info("%s", note)
    if hidden := sorted(style.variables & set(table.names)):
        get_run_logger().warning(
            "style %s does not see the column %s: a variable of its own has that name",
            style.name,
            quoted(hidden[0]),
        )


def note_rows(rows: RecordedRows, total: int) -> None:
    """Say at the end which of all rows had no conversation, and how many are new."""
    if unasked := rows.unasked:
        get_run_logger().warning(
            "%s of %s rows have no conversation: they were asked the user prompt",
            f"{unasked:,}",
            f"{total:,}",
        )
    if new := rows.new:
        get_run_logger().warning(
            "the dataset grew by %s%s during the run: run again for the new rows",
            f"{new:,} {'row' if new == 1 else 'rows'}",
            " or more" if new >= COUNTED_ROWS else "",
        )
