"""The client: many chat requests -> one outcome each, over one or more servers.

In: `ChatRequest`s. Out: for each a `Completion`, or a `Failure` that says whose fault it is;
connections, concurrency and retries of single requests are its own affair.
"""

from .client import ChatClient, ClientStats

__all__ = ["ChatClient", "ClientStats"]
