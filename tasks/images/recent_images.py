"""Remembers the images prepared last: several rows in a row often have the same one."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from ..records import ImageRef
from .prepare import ImageSettings, PreparedImage

MAX_BYTES = 64 << 20
"""Encoded images that are kept: rows about the same image are prepared close together."""


class RecentImages:
    """Prepares an image once for all rows that need it at about the same time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[ImageRef, ImageSettings], Future[PreparedImage]] = (
            OrderedDict()
        )
        self._bytes = 0

    def get(
        self, ref: ImageRef, settings: ImageSettings, prepare: Callable[[], PreparedImage]
    ) -> PreparedImage:
        """The prepared image; another thread that prepares it at the moment is waited for.

        Raises:
            Exception: as `prepare` does; a later call tries it again.
        """
        key = (ref, settings)
        with self._lock:
            future = self._images.get(key)
            if future is not None:
                self._images.move_to_end(key)
            else:
                own = self._images[key] = Future[PreparedImage]()
        if future is not None:
            return future.result()
        try:
            image = prepare()
        except BaseException as error:
            with self._lock:
                del self._images[key]
            own.set_exception(error)
            raise
        own.set_result(image)
        self._make_room(len(image.data))
        return image

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._bytes += size
            while self._bytes > MAX_BYTES and self._images:
                key, oldest = next(iter(self._images.items()))
                if not oldest.done():
                    return  # being prepared: its own call makes room
                del self._images[key]
                self._bytes -= len(oldest.result().data)
