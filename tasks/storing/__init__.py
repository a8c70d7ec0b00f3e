"""Store the parsed rows of batches as parts of the output, and know which rows are finished.

In: the completions of a batch, which are parsed. Out: one part per batch, and the `Ledger` that is
read from all parts and tells which rows are finished and which are pending.
"""

from .ledger import Ledger
from .store import StoredBatch, parse_and_store

__all__ = ["Ledger", "StoredBatch", "parse_and_store"]
