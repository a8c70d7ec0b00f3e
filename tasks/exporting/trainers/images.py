"""The images of conversations: referred to, copied beside the records, or embedded in them."""

import hashlib
import threading
from functools import lru_cache

from ...errors import DatasetError
from ...images.prepare import ImageSettings
from ...images.reader import ImageReader
from ...images.references import ImageBase
from ...object_store.store import ObjectStore
from ...records import ImageRef, Kind, RowError
from ...runs.exports import ExportImages
from ...storing.key_index import KeyIndex, Location
from .conversations import ConversationImage

IMAGES = "images"
"""Folder of the copies."""

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}

_FULL_SIZE = 1 << 20
"""Pixels of a side: no image that is decoded has a longer one."""

_JPEG_QUALITY = 95

_KEPT = 4096
"""Images that are remembered: rows about the same one mostly follow one another."""


class ImageExporter:
    """Gives the images of a format. Thread-safe.

    A copy, or what is embedded, is the file itself where that is a plain JPEG or PNG; anything else
    becomes one, upright and in sRGB, as the model saw it, but in its own size: trainers neither
    turn images nor convert their colours.

    Args:
        mode: how the format has images.
        reader: reads them.
        limits: limits on what is decoded.
        target: where copies are written.
        base: its image root is what paths are relative to.
        identified: whether images are identified, by the content of their files.
    """

    def __init__(
        self,
        mode: ExportImages,
        reader: ImageReader,
        limits: ImageSettings,
        target: ObjectStore,
        base: ImageBase,
        *,
        identified: bool,
    ) -> None:
        self._mode = mode
        self._reader = reader
        self._limits = limits.model_copy(
            update={"max_side": _FULL_SIZE, "jpeg_quality": _JPEG_QUALITY}
        )
        self._target = target
        self._root = f"{base.image_root.rstrip('/')}/" if base.image_root else ""
        self._identified = identified
        self._copied = KeyIndex()
        self._lock = threading.Lock()
        self._known = lru_cache(_KEPT)(self._exported)

    @property
    def copies(self) -> int:
        """How many files were written."""
        with self._lock:
            return len(self._copied)

    def export(self, ref: ImageRef, where: str) -> ConversationImage:
        """An image of a row.

        Raises:
            RowError: it cannot be read, or is no image.
            DatasetError: it has no path to refer to.
        """
        if self._mode == "paths" and ref.path is None:
            raise DatasetError(
                f"{where} embeds its image, which therefore has no path: export it with --images "
                "copy or embed"
            )
        is_kept = self._mode != "embed" and ref.path is not None
        return self._known(ref) if is_kept else self._exported(ref)

    def is_copy(self, name: str) -> bool:
        """Whether a file was written."""
        stem = name.removeprefix(f"{IMAGES}/").partition(".")[0]
        with self._lock:
            return bytes.fromhex(stem)[:16] in self._copied

    def _exported(self, ref: ImageRef) -> ConversationImage:
        if self._mode == "paths":
            path = str(ref.path)
            if not path.isascii() and path != path.encode(errors="replace").decode():
                raise RowError(Kind.IMAGE_REFUSED, "the path of its image is not valid UTF-8")
            identity = self._identify(ref) if self._identified else ""
            return ConversationImage(identity, path.removeprefix(self._root))
        prepared = self._reader.prepare(ref, self._limits)
        digest = hashlib.sha256(prepared.data)
        identity = f"sha256:{digest.hexdigest()}"
        if self._identified and prepared.is_converted:
            identity = self._identify(ref)
        name = f"{digest.hexdigest()}{_SUFFIXES[prepared.mime]}"
        if self._mode == "embed":
            return ConversationImage(identity, name, prepared.data, prepared.mime)
        self._copy(f"{IMAGES}/{name}", digest.digest()[:16], prepared.data)
        return ConversationImage(identity, f"{IMAGES}/{name}", mime=prepared.mime)

    def _identify(self, ref: ImageRef) -> str:
        """The same for the same file, wherever it is and however the format has it."""
        if ref.path is None or "://" not in ref.path:
            return self._reader.identify(ref)  # whose digests may be cached
        with self._reader.reading(ref) as data:
            return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def _copy(self, name: str, digest: bytes, data: bytes) -> None:
        with self._lock:
            if digest in self._copied:
                return
            self._copied.put(digest, Location(0, 0, 0))
        self._target.write(name, data)
