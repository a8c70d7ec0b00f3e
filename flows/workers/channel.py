"""Signed messages between a run and its workers, as objects of the output.

An output may be writable for others. A worker opens the images that a batch names, so it takes only
batches that its own run has signed, with a key that no object holds.
"""

import gzip
import hashlib
import hmac
import json
from dataclasses import fields, is_dataclass
from typing import Any

import pybase64

from ...tasks.errors import ObjectCorruptedError
from ...tasks.object_store.store import ObjectStore
from ...tasks.storing.layout import WORKERS, is_message

_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_BYTES = 1 << 30
"""Size of a message: batches hold 64 MiB of images and prompts, or a single row that has more."""


class Channel:
    """Writes and reads messages: plain JSON, compressed, and signed together with their name.

    Args:
        store: the output.
        key: hexadecimal key of the run.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.store = store
        self._key = bytes.fromhex(key)

    def write(self, name: str, message: Any, *, is_dense: bool = False) -> None:
        """Write a message of JSON values, dataclasses and bytes, which become base64.

        `is_dense` is whether compressing it would only take time, as with images in it.
        """
        text = json.dumps(message, default=_plain).encode()
        data = gzip.compress(text, 0 if is_dense else 1, mtime=0)
        self.store.write(name, self._digest(name, data) + data)

    def read(self, name: str) -> Any:
        """Read a message as plain JSON.

        Raises:
            ObjectMissingError: there is none.
            ObjectCorruptedError: it is not signed with the key of the run.
        """
        message = self.store.read(name, _MAX_BYTES)
        digest, data = message[:_DIGEST_BYTES], message[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(name, data)):
            raise ObjectCorruptedError(
                f"{self.store.uri_of(name)} was not written by this run: somebody else writes to "
                "this output; run again with an output of its own"
            )
        return json.loads(gzip.decompress(data))

    def _digest(self, name: str, data: bytes) -> bytes:
        return hmac.digest(self._key, name.encode() + b"\0" + data, "sha256")


def remove_messages(store: ObjectStore, crew: str = "") -> None:
    """Remove what a run and its workers have exchanged; by default all runs, which have ended.

    `crew` is the name of its folder.

    Raises:
        StoreError: the output cannot be read or written.
    """
    store.remove_all(filter(is_message, store.list(f"{WORKERS}/{crew}".rstrip("/"))))


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return pybase64.b64encode(value).decode()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(value)  # type: ignore[call-overload] # a mapping
