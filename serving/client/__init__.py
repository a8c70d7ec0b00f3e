"""The chat client: many requests in, one outcome each, over one or more servers.

In: `ChatRequest`s. Out: for each a `Completion`, or a `Failure` whose kind says whether the server,
the endpoint's configuration or the request is to blame. Handles connections, concurrency and
retries of single requests.
"""

from .client import ChatClient
from .stats import ClientStats

__all__ = ["ChatClient", "ClientStats"]
