"""Runs: the parameters of a run, and its record in the output.

In: the parameters. Out: the pass over the dataset that they define, and `runs/<id>.json` with the
progress of the run and its last heartbeat.
"""

from .parameters import RunParameters
from .passes import Pass, main_pass
from .run_record import RunCounts, RunRecord

__all__ = ["Pass", "RunCounts", "RunParameters", "RunRecord", "main_pass"]
