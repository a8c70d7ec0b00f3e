"""Generate: a batch -> completions.

In: a batch of prompts, and a client for the endpoint. Out: one raw reply per row, cached as plain
JSON under the batch key; a row that cannot be answered has a problem instead.
"""

from .batching import make_batches
from .cache import CompletionsCache
from .chat_requests import GenerationSettings
from .generate import generate_batch

__all__ = ["CompletionsCache", "GenerationSettings", "generate_batch", "make_batches"]
