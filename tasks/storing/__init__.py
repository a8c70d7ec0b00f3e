"""Store: parsed batches -> parts in the output, and which rows those finish.

In: a `ParsedBatch`. Out: one part per batch; and from all parts the `Ledger`, which tells the
finished rows from the pending ones.
"""

from .ledger import Ledger
from .store import StoredBatch, store_batch

__all__ = ["Ledger", "StoredBatch", "store_batch"]
