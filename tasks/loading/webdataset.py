"""WebDataset shards (tar files) -> records, streamed member by member."""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

from ...serving.printable import printable
from ..records import Kind, Problem, Record
from .image_folders import IMAGE_SUFFIXES
from .json_formats import LocatedRecord, parse_json
from .long_records import MAX_RECORD_BYTES, too_long

_IMAGES = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES}
_MAX_MEMBERS = 1000
"""Members of one sample."""

_MAX_HEADER_BYTES = 1 << 20
"""Bytes of a header with a long name, which is held in memory."""

_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}

_MAX_TEXT_BYTES = 1 << 20
"""Bytes of a member of unknown type that may be text."""

_KNOWN_SAMPLES = 200_000
"""Samples of a shard of which the names are kept: WebDataset advises 100,000 at most."""


def read_webdataset(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read the samples of a shard: adjacent members with the same name up to its first dot.

    The column `image` has the bytes of the image, or of all images in their order; `__key__` the
    name; an object in JSON gives its own columns; other text has its extension as the column.

    Raises:
        ValueError: it is not a tar file, it is cut off, or a sample is not in one place.
    """
    known: set[int] = set()
    number = 0
    try:
        for key, sample in _samples(file):
            if hash(key) in known:
                raise ValueError(
                    f"the members of sample {printable(key, 100)!r} are not adjacent, so samples "
                    "were read in parts; write the tar file sorted by name (tar --sort=name)"
                )
            if len(known) < _KNOWN_SAMPLES:
                known.add(hash(key))
            yield f"[{number}]", sample
            number += 1
    except (tarfile.TarError, RecursionError) as error:
        raise ValueError(f"the tar file is cut off or broken: {error}") from None


def _samples(file: io.BufferedReader) -> Iterator[tuple[str, Record | Problem]]:
    sample: _Sample | None = None
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, errorlevel=2) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined] # it would keep all of them
            name = posixpath.normpath(member.name)
            if not member.isreg() or member.issparse() or _is_hidden(name):
                continue
            folder, base = posixpath.split(name)
            key, _, field = base.partition(".")
            key = posixpath.join(folder, key)
            if sample is not None and sample.key != key:
                yield sample.key, sample.record()
                sample = None
            sample = sample or _Sample(key)
            if sample.accepts(field.lower(), member.size):
                data = tar.extractfile(member)
                sample.add(field.lower(), data.read() if data else b"")
        if sample is not None:
            yield sample.key, sample.record()
        while rest := tar.fileobj.read(1 << 16):
            if rest.strip(b"\0"):
                raise ValueError("data follows the end: tar files that were joined; split them")


class _Member(tarfile.TarInfo):
    """A member whose extended headers are limited, since they are held in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; a tar file that ends without the mark of its end was cut off."""
        if not buf:
            raise tarfile.ReadError("it has no end")
        return super().frombuf(buf, encoding, errors)

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        is_header = self.type in _HEADERS
        if self.size < 0 or (is_header and self.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc] # made to be overridden


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


class _Sample:
    """The members of a sample that were read so far."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._size = 0
        self._members = 0
        self._images: list[bytes] = []
        self._columns: dict[str, Any] = {}
        self._spread: dict[str, Any] = {}
        self._problem: Problem | None = None

    def accepts(self, field: str, size: int) -> bool:
        """Whether a member is to be read; a sample that is too large has a problem."""
        extension = field.rpartition(".")[2]
        if extension not in _IMAGES | {"json"} and size > _MAX_TEXT_BYTES:
            return False  # a video or a tensor
        self._size += size
        self._members += 1
        if self._size > MAX_RECORD_BYTES:
            self._problem = too_long(f"sample {printable(self.key, 100)!r}", self._size)
        elif self._members > _MAX_MEMBERS:
            message = f"sample {printable(self.key, 100)!r} has more than {_MAX_MEMBERS} members"
            self._problem = Problem(Kind.BAD_ROW, message)
        return self._problem is None

    def add(self, field: str, data: bytes) -> None:
        """Add what a member holds."""
        name, _, extension = field.rpartition(".")
        if extension in _IMAGES:
            self._images.append(data)
        elif extension == "json":
            self._add_json(name, data)
        elif field and b"\0" not in data:
            with suppress(UnicodeDecodeError):  # it is binary
                self._columns[name if extension == "txt" and name else field] = data.decode()

    def _add_json(self, name: str, data: bytes) -> None:
        try:
            value = parse_json(data)
        except ValueError as error:
            what = f"the JSON of sample {printable(self.key, 100)!r}"
            self._problem = Problem(Kind.BAD_ROW, f"{what} is not valid: {error}")
            return
        if isinstance(value, dict) and not name:
            self._spread = value
        else:
            self._columns[name or "json"] = value

    def record(self) -> Record | Problem:
        """The record of the sample; of two columns with one name, a member's own comes first."""
        if self._problem is not None:
            return self._problem
        several = self._images if len(self._images) > 1 else next(iter(self._images), None)
        columns = {"__key__": self.key, **({"image": several} if self._images else {})}
        columns |= self._columns
        for name, value in self._spread.items():
            columns[f"json.{name}" if name in columns else name] = value
        return columns
