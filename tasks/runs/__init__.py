"""Runs: what a run is asked to do, and its record in the output.

In: the parameters of a run. Out: the pass it makes over the dataset, and `runs/<id>.json`, which
says how far it is and whether it is alive.
"""

from .parameters import RunParameters
from .passes import Pass, pairs_pass
from .records import RunCounts, RunRecord

__all__ = ["Pass", "RunCounts", "RunParameters", "RunRecord", "pairs_pass"]
