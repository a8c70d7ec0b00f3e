"""Object storage: files in a local folder or objects in an S3 bucket.

In: a local path or an `s3://` URI, and credentials. Out: an `ObjectStore` that reads, writes,
lists and deletes objects; every write is atomic. Prefect's persisted results go through it too.
"""

from .credentials import S3Credentials
from .store import ObjectStore, load_store

__all__ = ["ObjectStore", "S3Credentials", "load_store"]
