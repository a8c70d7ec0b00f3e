"""All blocks of this package: Prefect's entry point imports this module to know them."""

from prefect.blocks.core import Block

from ..serving.endpoint import VLLMEndpoint
from ..tasks.object_store.store import ObjectStore

BLOCKS: tuple[type[Block], ...] = (VLLMEndpoint, ObjectStore)
