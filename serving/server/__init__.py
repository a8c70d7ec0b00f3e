"""The server: a `vllm serve` process of our own, from its start to its end.

In: `ServerOptions`. Out: a healthy `VLLMServer`, watched, restarted when it dies, and stopped with
all its processes.
"""

from .launch import ServerOptions
from .recovery import Recovery
from .server import VLLMServer

__all__ = ["Recovery", "ServerOptions", "VLLMServer"]
