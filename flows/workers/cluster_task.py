"""What runs on a cluster of Ray or Dask: a worker, as one long task."""

from typing import Any

from ...serving.printable import printable
from ...tasks.errors import ImageQAError
from .job import WorkerJob
from .worker import work

_MAX_LINE = 300


def run_worker(job: dict[str, Any]) -> str:
    """Work until the run ends.

    Ray and Dask send only the name of this function. Its argument and result are plain data, as an
    error would have to be unpickled by the run.

    Args:
        job: a `WorkerJob` as JSON.

    Returns:
        Why the worker has ended, in one line.
    """
    try:
        work(WorkerJob.model_validate(job))
    except ImageQAError as error:
        return str(error)
    return "it has ended"


def why_lost(error: BaseException) -> str:
    """Why a task has failed, in one line; `error` is what the cluster says."""
    text = str(error).strip()
    if "No module named 'prefect_imageqa'" in text:
        return "prefect-imageqa is not installed on the cluster: install this version of it there"
    # If the message quotes a traceback, its last line says what was wrong.
    line = text.splitlines()[-1 if "Traceback" in text or 'File "' in text else 0] if text else ""
    return printable(line, _MAX_LINE) or type(error).__name__
