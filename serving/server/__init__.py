"""The server: a `vllm serve` process of our own, from its start to its end.

In: `ServerOptions`. Out: a healthy `VLLMServer`, watched, restarted when it dies, and stopped with
all its processes.
"""

from .launch import ServerOptions
from .recovery import Revival
from .server import VLLMServer

__all__ = ["Revival", "ServerOptions", "VLLMServer"]
