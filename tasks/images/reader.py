"""Reads images, and identifies them without reading them again.

`image_refs` says where an image is; this module opens it.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Self, TypeVar

import fsspec

from ...serving.background_loop import BackgroundLoop
from ..errors import (
    AccessDeniedError,
    ObjectUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import call_store, read_start
from ..records import ImageRef, Kind, RowError
from .changes import changed_image
from .decoding_budget import FILES
from .file_digests import FileDigests
from .local_images import SMALL_BYTES, LocalImages, too_large
from .prepare import ImageSettings, PreparedImage, prepare_image, unchanged_image
from .recent_images import RecentImages
from .spellings import spellings
from .web import WebImages

T = TypeVar("T")

READ_THREADS = 48
"""Enough to hide an object store's latency; waiting threads cost nothing."""

_LOGGER = logging.getLogger("prefect_imageqa.images")


class ImageReader:
    """Identifies and reads images. Thread-safe.

    Nothing is started before it is needed: without images from the web there is no web client.
    Close it, or use it as a context manager, to stop that client and to save digests.

    Attributes:
        executor: the threads in which all images of a run are read and prepared.

    Args:
        max_bytes: larger images are not read.
        credentials: for S3; by default from the environment. Their patience is also that with
            hosts of web images.
        allow_private_hosts: also fetch web images from private and loopback addresses.
        digests: cache of local files' digests, closed with the reader. Without it, every file is
            read to identify it.
        root: the only folder, local or `s3://`, that images may come from, if given. `image_refs`
            has already checked this; for local files it is checked again when they are opened,
            since links may have changed.
        loop: event loop for the web client; by default it starts one.
    """

    def __init__(
        self,
        max_bytes: int = ImageSettings().max_file_bytes,
        *,
        credentials: S3Credentials | None = None,
        allow_private_hosts: bool = False,
        digests: FileDigests | None = None,
        root: str | None = None,
        loop: BackgroundLoop | None = None,
    ) -> None:
        self.executor = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="images")
        self._loop = loop
        self._max_bytes = max_bytes
        self._credentials = credentials or S3Credentials()
        self._allow_private_hosts = allow_private_hosts
        self._local = LocalImages(max_bytes, digests, root)
        self._web: WebImages | None = None
        self._web_lock = threading.Lock()
        self._scaled = 0
        self._recent = RecentImages()
        self._closed = False

    def confine(self, root: str | None) -> None:
        """Read local images only from this folder, if one is given."""
        self._local.confine(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the web client, if there is one, and save new digests of local files.

        Web images that are still being read fail with a `RowError` at once.
        """
        with self._web_lock:
            closing, self._closed = not self._closed, True
        if self._web and closing:
            self._web.close()
        self._local.close()
        if closing and self._scaled:
            _LOGGER.warning(
                "%s images with grey values of more than 8 bits were scaled to the range that each "
                "holds: its lowest value was sent as black, its highest as white",
                f"{self._scaled:,}",
            )
        self.executor.shutdown(wait=False, cancel_futures=True)

    def identify(self, ref: ImageRef) -> str:
        """Identify an image by its content, or by its ETag on S3 or the web.

        Returns:
            `sha256:<hex>` for local files and embedded bytes; `etag:<tag>:<bytes>` for `s3://`,
            which takes one request. For the web see `WebImages.identify`.

        Raises:
            RowError: as for `read`, except that a missing web image may only be detected there.
            StoreUnavailableError: as for `read`.
        """
        if ref.path is None:
            return self._content_digest(ref)
        if _is_web(ref.path):
            return self._web_images().identify(ref.path)
        if ref.path.startswith("s3://"):
            return self._s3_etag(ref)
        return f"sha256:{self._local.digest(ref)}"

    def _content_digest(self, ref: ImageRef) -> str:
        with self.reading(ref) as data:
            return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def preload_digests(self, refs: Sequence[ImageRef]) -> None:
        """Look up the cached digests of local images that are about to be identified."""
        paths = [ref.path for ref in refs if ref.path and "://" not in ref.path]
        self._local.preload_digests(paths)

    def read(self, ref: ImageRef) -> bytes:
        """Read the encoded image.

        Raises:
            RowError: it is larger than `max_bytes`, it cannot be read (missing or refused), or its
                host does not answer, or its store denies access (connection, timeout).
            StoreUnavailableError: its S3 server did not answer for as long as a run waits.
        """
        if (data := self._read(ref, self._max_bytes)) is None:
            raise too_large(ref, self._max_bytes)
        return data

    @contextmanager
    def reading(self, ref: ImageRef) -> Iterator[bytes]:
        """Read the encoded image as `read` does, within a budget of memory until it is done with.

        A large one waits while other threads hold many large ones.
        """
        data = self._read(ref, min(SMALL_BYTES, self._max_bytes))
        if data is not None or ref.path is None:
            yield data or self.read(ref)
            return
        size = self._size(ref, ref.path)
        if size > self._max_bytes:
            raise too_large(ref, self._max_bytes)
        with FILES.hold(size):
            yield self.read(ref)

    def _read(self, ref: ImageRef, limit: int) -> bytes | None:
        """The encoded image; None if it has more bytes than the limit."""
        data: bytes | None
        if ref.path is None:
            data = ref.data or b""
        elif _is_web(ref.path):
            data = self._web_images().read_up_to(ref.path, limit)
        elif ref.path.startswith("s3://"):
            # One byte over the limit shows that it is too large, without a request for the size.
            data = self._call_s3(ref.path, lambda s3, key: read_start(s3, key, limit + 1))
        else:
            data = self._local.read(ref, limit)
        return data if data is None or len(data) <= limit else None

    def _size(self, ref: ImageRef, path: str) -> int:
        """Bytes of an image; of one from the web, whose host may lie, the most that are read."""
        if _is_web(path):
            return self._max_bytes
        if path.startswith("s3://"):
            return int(self._call_s3(path, lambda s3, key: s3.info(key))["size"])
        return self._local.size(ref)

    def prepare(self, ref: ImageRef, settings: ImageSettings) -> PreparedImage:
        """Read an image and prepare it for the model; once for rows that share it and are near.

        Raises:
            RowError: as for `read` and `prepare_image`.
            StoreUnavailableError: as for `read`.
        """
        return self._recent.get(ref, settings, lambda: self._prepare(ref, settings))

    def changed(
        self, ref: ImageRef, image: PreparedImage, change: str, settings: ImageSettings
    ) -> PreparedImage:
        """A prepared image with a slight change; made once for rows that share it and are near.

        Raises:
            RowError: as for `changed_image`.
        """
        changed = partial(changed_image, image, change, settings)
        return self._recent.get(ref, settings, changed, change)

    def prepare_at_once(self, ref: ImageRef, settings: ImageSettings) -> PreparedImage | None:
        """The prepared image, if that takes neither waiting nor decoding: no thread is worth it.

        Returns:
            None if it does: then `prepare` should be called in a thread of `executor`.

        Raises:
            RowError: as for `prepare`.
        """
        is_file = ref.path is not None  # finding embedded bytes takes longer than checking them
        known = self._recent.find(ref, settings) if is_file else None
        if known or not self.is_quick(ref):
            return known
        data = self._read(ref, min(SMALL_BYTES, self._max_bytes))
        prepared = None if data is None else unchanged_image(data, settings)
        if is_file and prepared:
            self._recent.add(ref, settings, prepared)
        return prepared

    def is_quick(self, ref: ImageRef) -> bool:
        """Whether identifying or reading it takes so little time that no thread is worth it.

        So are embedded images, and small local files unless their disk turns out to be slow.
        """
        return ref.path is None or ("://" not in ref.path and self._local.is_quick(ref))

    def _prepare(self, ref: ImageRef, settings: ImageSettings) -> PreparedImage:
        with self.reading(ref) as data:
            prepared = prepare_image(data, settings)
        if prepared.is_scaled:
            with self._web_lock:
                self._scaled += 1
        return prepared

    def _s3_etag(self, ref: ImageRef) -> str:
        info = self._call_s3(str(ref.path), lambda s3, key: s3.info(key))
        if info["type"] != "file":
            raise RowError(Kind.IMAGE_MISSING, f"{ref}: is a folder")
        if info["size"] > self._max_bytes:
            raise too_large(ref, self._max_bytes)
        # Not the version ID: it changes when the same bytes are uploaded again; the ETag does not.
        if tag := str(info.get("ETag") or "").strip('"'):
            return f"etag:{tag}:{info['size']}"
        return self._content_digest(ref)  # not every S3-compatible server has ETags

    def _call_s3(self, uri: str, call: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
        """Call with the key, or with another spelling of it under which there is an object."""
        first: RowError | None = None
        for spelling in spellings(uri):
            if first and ".." in spelling.split("/"):  # not what `image_refs` has checked
                continue
            try:
                return self._call_key(spelling, call)
            except RowError as error:
                if error.problem.kind is not Kind.IMAGE_MISSING:
                    raise
                first = first or error
        raise first or RowError(Kind.IMAGE_MISSING, f"{uri}: not found")

    def _call_key(self, uri: str, call: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
        try:
            return call_store(uri, self._credentials, call, essential=False)
        except (ObjectUnavailableError, AccessDeniedError) as error:
            raise RowError(Kind.CONNECTION, str(error)) from None
        except StoreUnavailableError:
            raise  # as for all other rows that have an image there
        except StoreError as error:
            raise RowError(Kind.IMAGE_MISSING, str(error)) from None

    def _web_images(self) -> WebImages:
        with self._web_lock:
            if self._web is None:
                if self._closed:
                    raise RowError(Kind.CONNECTION, "the image reader is closed")
                self._web = WebImages(
                    self._max_bytes,
                    allow_private_hosts=self._allow_private_hosts,
                    loop=self._loop,
                    patience=self._credentials.patience,
                )
            return self._web


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))
