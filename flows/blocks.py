"""All Prefect blocks of this package; the `prefect.collections` entry point imports them here."""

from prefect.blocks.core import Block

from ..serving.endpoint import VLLMEndpoint
from ..tasks.object_store.store import ObjectStore

BLOCKS: tuple[type[Block], ...] = (VLLMEndpoint, ObjectStore)
