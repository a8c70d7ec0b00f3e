"""Question-answer pairs about your images: a Prefect flow over a vLLM server.

`image_qa` is the flow; the operator API and the blocks are here too. Everything is imported on
first use, because Prefect and pandas take their time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .flows.image_qa import image_qa as image_qa
    from .flows.operator import FileStorage as FileStorage
    from .flows.operator import ImageQAGenerator as ImageQAGenerator
    from .flows.operator import LocalModelVLMServing_vllm as LocalModelVLMServing_vllm
    from .flows.operator import PromptedVQAGenerator as PromptedVQAGenerator
    from .flows.settings import Columns as Columns
    from .flows.settings import Images as Images
    from .flows.settings import Limits as Limits
    from .flows.settings import Replies as Replies
    from .flows.settings import Reuse as Reuse
    from .flows.settings import Sampling as Sampling
    from .flows.summary import RunSummary as RunSummary
    from .serving.client import ChatClient as ChatClient
    from .serving.endpoint import VLLMEndpoint as VLLMEndpoint
    from .serving.errors import ImageQAError as ImageQAError
    from .serving.server import VLLMServer as VLLMServer
    from .tasks.images import ImageSettings as ImageSettings
    from .tasks.object_store import ObjectStore as ObjectStore

_HOMES = {
    "image_qa": ".flows.image_qa",
    "FileStorage": ".flows.operator",
    "ImageQAGenerator": ".flows.operator",
    "LocalModelVLMServing_vllm": ".flows.operator",
    "PromptedVQAGenerator": ".flows.operator",
    "Columns": ".flows.settings",
    "Images": ".flows.settings",
    "Limits": ".flows.settings",
    "Replies": ".flows.settings",
    "Reuse": ".flows.settings",
    "Sampling": ".flows.settings",
    "RunSummary": ".flows.summary",
    "ChatClient": ".serving.client",
    "VLLMEndpoint": ".serving.endpoint",
    "ImageQAError": ".serving.errors",
    "VLLMServer": ".serving.server",
    "ImageSettings": ".tasks.images",
    "ObjectStore": ".tasks.object_store",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
