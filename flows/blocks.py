"""All blocks of this package: Prefect's entry point imports this module to know them."""

from ..serving.endpoint import VLLMEndpoint
from ..tasks.object_store import ObjectStore

__all__ = ["ObjectStore", "VLLMEndpoint"]
