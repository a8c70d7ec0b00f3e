"""Reads images, and knows them by an identity that does not need them read again.

`image_refs` says where an image is; here it is opened.
"""

import errno
import hashlib
import io
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import fsspec

from ...serving.background import BackgroundLoop
from ..errors import AccessDeniedError, StoreError, StoreUnavailableError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import open_filesystem, store_errors
from ..records import ImageRef, Kind, RowError
from .file_digests import FileDigests, settled, version_of
from .preparing import ImageSettings
from .web import WebImages

T = TypeVar("T")

READ_THREADS = 48
"""Enough to hide an object store's latency; those that wait cost nothing."""

_LASTING = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}
"""Errors of a local file that trying again does not mend; others, of a network's disk say, pass."""


class ImageReader:
    """Knows images by their identity and reads them; safe to use from several threads.

    Nothing is started before it is needed: without images from the web there is no web client.
    Close it, or use it as a context manager, to end that client and to save digests.

    Attributes:
        threads: in which all images of a run are read and prepared.

    Args:
        max_bytes: larger images are not read.
        credentials: who to be on S3; by default the environment says.
        allow_private_hosts: let images of the web come from private and loopback addresses too.
        digests: remembers the digests of local files; closed with the reader. Without it, every
            file is read to identify it.
        root: the only folder, local or `s3://`, that images come from, where it is given. Who
            names an image has checked that; of a local one it is checked again when it is opened,
            since links may have changed.
        loop: what the client for the web runs on; by default a loop of its own.
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
        self.threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="images")
        self._loop = loop
        self._max_bytes = max_bytes
        self._credentials = credentials
        self._allow_private_hosts = allow_private_hosts
        self._digests = digests
        self._root = Path(root).expanduser().resolve() if root and "://" not in root else None
        self._web: WebImages | None = None
        self._web_lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the web client, if there is one, and save what was learnt of local files.

        Who still reads images of the web gets a `RowError`, at once.
        """
        with self._web_lock:
            closing, self._closed = not self._closed, True
        if self._web and closing:
            self._web.close()
        if self._digests:
            self._digests.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def identify(self, ref: ImageRef) -> str:
        """Identify an image by its content, or by its store's or server's tag of it.

        Returns:
            `sha256:<hex>` for local files and embedded bytes; `etag:<tag>:<bytes>` for `s3://`,
            which takes one request. For the web see `WebImages.identify`.

        Raises:
            RowError: as `read` does; only `read` is sure to find an image of the web missing.
        """
        if ref.path is None:
            return self._content(ref)
        if _is_web(ref.path):
            return self._web_images().identify(ref.path)
        if ref.path.startswith("s3://"):
            return self._s3_tag(ref)
        return f"sha256:{self._file_digest(ref)}"

    def _content(self, ref: ImageRef) -> str:
        return f"sha256:{hashlib.sha256(self.read(ref)).hexdigest()}"

    def recall(self, refs: Sequence[ImageRef]) -> None:
        """Look up what is remembered of local images that are about to be identified."""
        if self._digests:
            paths = [ref.path for ref in refs if ref.path and "://" not in ref.path]
            self._digests.recall(paths)

    def read(self, ref: ImageRef) -> bytes:
        """Read the encoded image.

        Raises:
            RowError: it is larger than `max_bytes`, it cannot be read (missing or refused), or its
                store does not let anyone in now (connection, timeout).
        """
        data: bytes | None
        if ref.path is None:
            data = ref.data or b""
        elif _is_web(ref.path):
            data = self._web_images().read(ref.path)
        elif ref.path.startswith("s3://"):
            # One byte more than allowed tells, and saves asking for the size first.
            data = self._ask_s3(ref.path, lambda s3, key: _start(s3, key, self._max_bytes + 1))
        else:
            with _open_local(ref.path, self._root) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(size) if size <= self._max_bytes else None
        if data is None or len(data) > self._max_bytes:
            raise self._too_large(ref)
        return data

    def _file_digest(self, ref: ImageRef) -> str:
        path = str(ref.path)
        if self._digests:
            info = _look_at(path)
            known = self._digests.find(path, version_of(info))
            if known and info.st_size <= self._max_bytes:
                return known
        with _open_local(path, self._root) as file:
            now, info = time.time(), os.fstat(file.fileno())
            if info.st_size > self._max_bytes:
                raise self._too_large(ref)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = version_of(os.fstat(file.fileno())) == version_of(info)
        if self._digests and unchanged and settled(info, now):
            self._digests.keep(path, version_of(info), digest)
        return digest

    def _s3_tag(self, ref: ImageRef) -> str:
        info = self._ask_s3(str(ref.path), lambda s3, key: s3.info(key))
        if info["type"] != "file":
            raise RowError(Kind.IMAGE_MISSING, f"{ref}: is a folder")
        if info["size"] > self._max_bytes:
            raise self._too_large(ref)
        # Not the version id: it changes when the same bytes are uploaded again, the tag does not.
        if tag := str(info.get("ETag") or "").strip('"'):
            return f"etag:{tag}:{info['size']}"
        return self._content(ref)  # not every server that speaks S3 has tags

    def _ask_s3(self, uri: str, ask: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
        try:
            with store_errors(uri):
                return ask(*open_filesystem(uri, self._credentials))
        except (StoreUnavailableError, AccessDeniedError) as error:
            raise RowError(Kind.CONNECTION, str(error)) from None
        except StoreError as error:
            raise RowError(Kind.IMAGE_MISSING, str(error)) from None

    def _web_images(self) -> WebImages:
        with self._web_lock:
            if self._web is None:
                if self._closed:
                    raise RowError(Kind.CONNECTION, "the reader of images is closed")
                self._web = WebImages(
                    self._max_bytes,
                    allow_private_hosts=self._allow_private_hosts,
                    loop=self._loop,
                )
            return self._web

    def _too_large(self, ref: ImageRef) -> RowError:
        limit = f"the limit of {self._max_bytes / 1e6:g} MB"
        return RowError(Kind.IMAGE_TOO_LARGE, f"{ref} is larger than {limit}")


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _look_at(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116 (a Path costs more than the look-up)
    except OSError as error:
        raise _unreadable(path, error) from None


@contextmanager
def _open_local(path: str, root: Path | None) -> Iterator[io.BufferedReader]:
    """Open a regular file; a pipe or device put in its place must not block or flood us."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RowError(Kind.IMAGE_MISSING, f"{path}: is not a regular file")
            opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()
            if root is not None and not opened.is_relative_to(root):
                raise RowError(Kind.IMAGE_REFUSED, f"{path} is not inside the image root {root}")
            yield file
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> RowError:
    kind = Kind.IMAGE_MISSING if error.errno in _LASTING else Kind.CONNECTION
    return RowError(kind, f"{path}: {error.strerror or error}")


def _start(s3: fsspec.AbstractFileSystem, key: str, count: int) -> bytes:
    try:
        data: bytes = s3.cat_file(key, start=0, end=count)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an empty object has no first byte to ask for
            return b""
        raise
    return data
