"""Opens the store at a URI that a user has given."""

from ..tasks.object_store.store import ObjectStore, load_store
from .prefect_server import check_server


def open_store(uri: str, block: str | ObjectStore | None) -> ObjectStore:
    """The store at a URI, with the credentials of a block, given as itself or by name.

    Raises:
        PrefectServerError: a block is named, but no Prefect server answers.
        ImageQAError: a block is named, but the temporary Prefect server does not start.
        StoreError: the URI has an unsupported scheme, or there is no such block.
    """
    if isinstance(block, str) and block:
        check_server()
        block = load_store(block)
    return block.with_uri(uri) if isinstance(block, ObjectStore) else ObjectStore(uri=uri)
