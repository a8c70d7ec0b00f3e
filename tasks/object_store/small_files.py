"""Small files that a run is told to read: local ones, or objects in S3."""

import os

from .credentials import S3Credentials
from .filesystems import call_store, read_start
from .regular_files import open_regular


def read_small_file(uri: str, limit: int, credentials: S3Credentials | None = None) -> bytes:
    """The first `limit` bytes of a file or object, and one more if there are more.

    Args:
        uri: a local path or `s3://` URI.
        limit: in bytes.
        credentials: of S3; None for those of the environment.

    Raises:
        ObjectMissingError: there is none.
        StoreError: it cannot be read.
    """
    is_local = "://" not in uri
    if is_local:
        uri = os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111

    def read(filesystem: object, path: str) -> bytes:
        if not is_local:
            return read_start(filesystem, path, limit + 1)
        with open_regular(path) as file:
            return file.read(limit + 1)

    return call_store(uri, credentials, read)
