"""Question-answer pairs about your images: a Prefect flow over a vLLM server.

`image_qa` is the flow; the operator API and the blocks are here too. Everything is imported on
first use, because Prefect and pandas take their time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .serving.loopback import bypass_proxies

if TYPE_CHECKING:
    from .flows.dataflow import APIVLMServing_openai as APIVLMServing_openai
    from .flows.dataflow import FileStorage as FileStorage
    from .flows.dataflow import ImageQAGenerator as ImageQAGenerator
    from .flows.dataflow import PromptedVQAGenerator as PromptedVQAGenerator
    from .flows.dataflow.local_model import LocalModelVLMServing_vllm as LocalModelVLMServing_vllm
    from .flows.image_qa import image_qa as image_qa
    from .flows.summary import RunSummary as RunSummary
    from .serving.client import ChatClient as ChatClient
    from .serving.endpoint import VLLMEndpoint as VLLMEndpoint
    from .serving.server.server import VLLMServer as VLLMServer
    from .tasks.errors import AccessDeniedError as AccessDeniedError
    from .tasks.errors import ConditionError as ConditionError
    from .tasks.errors import DatasetError as DatasetError
    from .tasks.errors import EndpointError as EndpointError
    from .tasks.errors import EndpointLostError as EndpointLostError
    from .tasks.errors import ErrorRateError as ErrorRateError
    from .tasks.errors import ImageQAError as ImageQAError
    from .tasks.errors import ObjectCorruptedError as ObjectCorruptedError
    from .tasks.errors import ObjectMissingError as ObjectMissingError
    from .tasks.errors import ObjectUnavailableError as ObjectUnavailableError
    from .tasks.errors import OutputBusyError as OutputBusyError
    from .tasks.errors import PilotError as PilotError
    from .tasks.errors import PrefectServerError as PrefectServerError
    from .tasks.errors import RecordCorruptedError as RecordCorruptedError
    from .tasks.errors import RecordRefusedError as RecordRefusedError
    from .tasks.errors import ServerError as ServerError
    from .tasks.errors import StoreError as StoreError
    from .tasks.errors import StoreUnavailableError as StoreUnavailableError
    from .tasks.images import ImageSettings as ImageSettings
    from .tasks.loading.columns import Columns as Columns
    from .tasks.object_store import ObjectStore as ObjectStore
    from .tasks.records import QAPair as QAPair
    from .tasks.runs.checks import Checks as Checks
    from .tasks.runs.exports import Exports as Exports
    from .tasks.runs.parameters import Asking as Asking
    from .tasks.runs.parameters import Caching as Caching
    from .tasks.runs.parameters import Images as Images
    from .tasks.runs.parameters import Limits as Limits
    from .tasks.runs.parameters import Parsing as Parsing
    from .tasks.runs.parameters import Sampling as Sampling
    from .tasks.runs.pilot import Pilot as Pilot
    from .tasks.runs.workers import Workers as Workers

_NAMES = {
    ".flows.image_qa": ("image_qa",),
    ".flows.dataflow": (
        *("APIVLMServing_openai", "FileStorage", "ImageQAGenerator", "LocalModelVLMServing_vllm"),
        "PromptedVQAGenerator",
    ),
    ".tasks.runs.parameters": ("Asking", "Caching", "Images", "Limits", "Parsing", "Sampling"),
    ".tasks.loading.columns": ("Columns",),
    ".tasks.runs.checks": ("Checks",),
    ".tasks.runs.exports": ("Exports",),
    ".tasks.runs.pilot": ("Pilot",),
    ".tasks.runs.workers": ("Workers",),
    ".flows.summary": ("RunSummary",),
    ".serving.client": ("ChatClient",),
    ".serving.endpoint": ("VLLMEndpoint",),
    ".serving.server.server": ("VLLMServer",),
    ".tasks.errors": (
        *("AccessDeniedError", "ConditionError", "DatasetError", "EndpointError"),
        *("EndpointLostError", "ErrorRateError", "ImageQAError", "ObjectCorruptedError"),
        "ObjectMissingError",
        *("ObjectUnavailableError", "OutputBusyError", "PilotError", "PrefectServerError"),
        *("RecordCorruptedError", "RecordRefusedError", "ServerError", "StoreError"),
        "StoreUnavailableError",
    ),
    ".tasks.images": ("ImageSettings",),
    ".tasks.object_store": ("ObjectStore",),
    ".tasks.records": ("QAPair",),
}

_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)

bypass_proxies()  # before Prefect or botocore reads the environment


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
