"""Store parsed batches as parts of the output, and know which rows are finished.

In: a `ParsedBatch`. Out: one part per batch, and the `Ledger` that is read from all parts and
tells which rows are finished and which are pending.
"""

from .ledger import Ledger
from .store import StoredBatch, store_batch

__all__ = ["Ledger", "StoredBatch", "store_batch"]
