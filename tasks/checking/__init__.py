"""Judge every QA pair: checks, each of which gives columns about it.

In: the pairs of a run. Out: for each pair, the values of the columns of each check. A check that
asks the model is a pass over the pairs, with everything that makes a pass safe; the others compute.
"""

from .catalogue import CHECK_NAMES, CheckSettings, open_check
from .check import AskedCheck, Check, CheckedPair, Columns, ComputedCheck, Values

__all__ = [
    "CHECK_NAMES",
    "AskedCheck",
    "Check",
    "CheckSettings",
    "CheckedPair",
    "Columns",
    "ComputedCheck",
    "Values",
    "open_check",
]
