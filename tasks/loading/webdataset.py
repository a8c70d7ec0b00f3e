"""WebDataset shards (tar files) -> records, streamed member by member."""

import io
import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import Any, Self

from ...serving.printable import printable
from ..records import Kind, Problem, Record
from .image_folders import IMAGE_SUFFIXES
from .json_formats import LocatedRecord, parse_json
from .long_records import MAX_RECORD_BYTES, too_long

_IMAGES = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES}
_IMAGE_NAME = re.compile(r"(?:(?:image|img)s?)?[-_.0-9]*")
"""Names of members that are the images of the sample: none, a number, or such as `image_0`."""

_TEXTS = {"txt", "text", "prompt", "question", "caption"}
"""Extensions of members that are text, whatever they hold."""

_TURN_NAMES = {"from", "role", "user", "question"}
"""A turn of a conversation has one of them."""

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
"""Bytes of a member that is text, or of unknown type and may be text."""

_KNOWN_SAMPLES = 200_000
"""Samples of a shard of which the names are kept: WebDataset advises 100,000 at most."""


def read_webdataset(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read the samples of a shard: adjacent members with the same name up to its first dot.

    The column `image` has the bytes of the image, or of all images by their numbers; `__key__` the
    name; an object in JSON gives its own columns, and a list of turns is `conversations`; other
    text has its extension as the column, and an image with a name, such as `mask.png`, its name.

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
        self._images: list[tuple[str, bytes]] = []
        self._columns: list[tuple[str, str, Any]] = []
        self._spread: dict[str, Any] = {}
        self._problem: Problem | None = None

    def accepts(self, field: str, size: int) -> bool:
        """Whether a member is to be read; a sample that is too large has a problem."""
        extension = field.rpartition(".")[2]
        if extension not in _IMAGES | {"json"} and size > _MAX_TEXT_BYTES:
            if extension in _TEXTS:
                what = f"has {size:,} bytes, and a text may have {_MAX_TEXT_BYTES:,}"
                self._problem = self._bad_member(field, what)
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
        if extension in _IMAGES and _IMAGE_NAME.fullmatch(name):
            self._images.append((name, data))
        elif extension in _IMAGES:
            self._columns.append((name, field, data))
        elif extension == "json":
            self._add_json(name, field, data)
        elif field:
            self._add_text(name, field, data, is_text=extension in _TEXTS)

    def _add_text(self, name: str, field: str, data: bytes, *, is_text: bool) -> None:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" not in text:
            own_name = name if field.endswith(".txt") else ""
            self._columns.append((own_name or field, field, text))
        elif is_text:  # others are binary
            self._problem = self._bad_member(field, "is not UTF-8 text; save it as UTF-8")

    def _add_json(self, name: str, field: str, data: bytes) -> None:
        try:
            value = parse_json(data)
        except ValueError as error:
            what = f"the JSON of sample {printable(self.key, 100)!r}"
            self._problem = Problem(Kind.BAD_ROW, f"{what} is not valid: {error}")
            return
        if isinstance(value, dict) and not name:
            self._spread = value
        else:
            usual = "conversations" if _are_turns(value) else "json"
            self._columns.append((name or usual, field, value))

    def _bad_member(self, field: str, what: str) -> Problem:
        return Problem(Kind.BAD_ROW, f"member {printable(f'{self.key}.{field}', 100)!r} {what}")

    def record(self) -> Record | Problem:
        """The record of the sample; of two columns with one name, a member's own comes first."""
        if self._problem is not None:
            return self._problem
        columns: dict[str, Any] = {"__key__": self.key}
        if images := [data for _, data in sorted(self._images, key=_numbers)]:
            columns["image"] = images if len(images) > 1 else images[0]
        for name, field, value in self._columns:
            columns[field if name in columns else name] = value
        for name, value in self._spread.items():
            columns[f"json.{name}" if name in columns else name] = value
        return columns


def _numbers(image: tuple[str, bytes]) -> list[tuple[int, str]]:
    """Orders images by the numbers in their names, of any length: tar sorts 10 before 2."""
    numbers = [digits.lstrip("0") for digits in re.findall("[0-9]+", image[0])]
    return [(len(digits), digits) for digits in numbers]


def _are_turns(value: Any) -> bool:
    """Whether the list in a file of JSON is a conversation, not boxes or other annotations."""
    return (
        isinstance(value, list)
        and all(isinstance(item, dict) for item in value)
        and any(not _TURN_NAMES.isdisjoint(item) for item in value)
    )
