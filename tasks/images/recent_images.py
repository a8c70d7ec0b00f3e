"""Remembers the images prepared last: several rows in a row often have the same one."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from ..records import ImageRef
from .prepare import ImageSettings, PreparedImage

MAX_BYTES = 16 << 20
"""Images that are kept, with the bytes that identify embedded ones: rows about the same image are
prepared close together."""

_Key = tuple[str | None, bytes | None, str, ImageSettings, str]


class RecentImages:
    """Prepares an image once for all rows that need it at about the same time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: OrderedDict[_Key, PreparedImage] = OrderedDict()
        self._running: dict[_Key, Future[PreparedImage]] = {}
        self._bytes = 0

    def get(
        self,
        ref: ImageRef,
        settings: ImageSettings,
        prepare: Callable[[], PreparedImage],
        change: str = "",
    ) -> PreparedImage:
        """The prepared image; another thread that prepares it at the moment is waited for.

        Args:
            ref: the image.
            settings: how it is prepared.
            prepare: prepares it.
            change: what is changed about it then, see `changes`.

        Raises:
            Exception: as `prepare` does; a later call tries it again.
        """
        key = _key(ref, settings, change)
        with self._lock:
            if image := self._find(key):
                return image
            running = self._running.get(key)
            if running is None:
                own = self._running[key] = Future[PreparedImage]()
        if running is not None:
            return running.result()
        try:
            image = prepare()
        except BaseException as error:
            with self._lock:
                del self._running[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            self._add(key, image)
        own.set_result(image)
        return image

    def find(self, ref: ImageRef, settings: ImageSettings) -> PreparedImage | None:
        """The prepared image, if it is remembered."""
        with self._lock:
            return self._find(_key(ref, settings))

    def add(self, ref: ImageRef, settings: ImageSettings, image: PreparedImage) -> None:
        """Remember a prepared image."""
        with self._lock:
            self._add(_key(ref, settings), image)

    def _find(self, key: _Key) -> PreparedImage | None:
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def _add(self, key: _Key, image: PreparedImage) -> None:
        if key not in self._images:
            self._images[key] = image
            self._bytes += _size(key, image)
        while self._bytes > MAX_BYTES:
            self._bytes -= _size(*self._images.popitem(last=False))


def _key(ref: ImageRef, settings: ImageSettings, change: str = "") -> _Key:
    return ref.path, ref.data, ref.version, settings, change


def _size(key: _Key, image: PreparedImage) -> int:
    """Bytes in memory; the key holds an embedded image as it was."""
    return len(image.data) + len(key[1] or b"")
