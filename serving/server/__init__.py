"""The vLLM server: starts, monitors, restarts and stops a `vllm serve` process.

In: `ServerOptions`. Out: a healthy `VLLMServer`, whose processes end with the one that started it.
"""

from .launch import ServerOptions
from .recovery import Recovery
from .server import VLLMServer

__all__ = ["Recovery", "ServerOptions", "VLLMServer"]
