"""The image column of a row -> references to images that may be read."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from ..object_store.filesystems import is_encodable
from ..object_store.regular_files import is_inside
from ..records import ImageRef, Kind, RowError
from .base64_images import base64_image, data_uri_bytes
from .decoding import decode, upright
from .local_paths import file_at, joined
from .spellings import is_windows_path, spellings
from .web_addresses import display_url, parse_image_url

# A file's name may contain a colon; but file:/etc/passwd is a URL too.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20})://|(file|https?):", re.IGNORECASE)
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

_MAPPING_KEYS = ("bytes", "path", "image", "image_url", "url")
"""Where mappings hold an image: Hugging Face's, and parts of messages for OpenAI and Qwen."""

_MAX_NAME, _MAX_PATH = 255, 4096
"""Bytes of a file's name, and of a path; longer ones exist nowhere."""

_MAX_FOLDERS = 4096
"""Folders whose place after all links is remembered."""

_MAX_NESTING = 8
"""Nested lists in an image column; deeper nesting is surely a mistake."""


@dataclass(frozen=True, slots=True)
class ImageBase:
    """Where relative image paths are looked up.

    Attributes:
        folder: the dataset's folder, local or an `s3://` URI; None for a DataFrame. Paths of a
            local dataset are also looked up in the working directory.
        image_root: the only folder that images may come from, if given.
        is_confined: without an image root, whether local paths may not leave `folder`, nor
            `s3://` URIs its bucket. Web images may be used then.
    """

    folder: str | None = None
    image_root: str | None = None
    is_confined: bool = False
    _real_folders: dict[str, str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def real_folder(self, path: str) -> str:
        """Where a folder is after all links. It is looked up once: `ImageReader` checks again.

        Raises:
            OSError | RuntimeError | ValueError: it cannot be a path.
        """
        found = self._real_folders.get(path)
        if found is None:
            if len(self._real_folders) >= _MAX_FOLDERS:
                self._real_folders.clear()
            found = self._real_folders[path] = str(Path(path).expanduser().resolve())
        return found


def image_refs(value: Any, base: ImageBase, max_images: int = 1000) -> tuple[ImageRef, ...]:
    """Parse an image column: path, URL, base64, bytes, Hugging Face or PIL image, or a list.

    A part of a message for OpenAI or Qwen (`image`, `image_url`) is an image too.

    Opens no file and contacts no server; local paths are checked for existence.

    Returns:
        The images in order; empty if the value is missing or empty.

    Raises:
        RowError: the value is not an image reference or has more than `max_images`, before any is
            looked up (bad_row), the path does not exist
            (image_missing), or it must not be read (image_refused).
    """
    if isinstance(value, str) and (text := value.strip()):
        return (_text_ref(text, base),)
    images = list(held_images(value))
    if len(images) > max_images:
        raise RowError(
            Kind.BAD_ROW, f"the row has {len(images)} images, more than max_images ({max_images})"
        )
    return tuple(_ref(image, base) for image in images)


def held_images(value: Any, depth: int = 0) -> Iterator[str | bytes | bytearray | Image.Image]:
    """The images in a column's value, not looked up yet.

    Raises:
        RowError: it is nothing that holds images.
    """
    if isinstance(value, str | bytes | bytearray):
        if value.strip() if isinstance(value, str) else value:
            yield value
    elif isinstance(value, Image.Image):
        yield value
    elif isinstance(value, Mapping) and not value.keys().isdisjoint(_MAPPING_KEYS):
        if depth >= _MAX_NESTING:
            _unusable(value)
        held = next((value[key] for key in _MAPPING_KEYS if value.get(key)), None)
        yield from held_images(held, depth + 1)
    elif isinstance(value, Sequence) and depth < _MAX_NESTING:
        for item in value:
            yield from held_images(item, depth + 1)
    elif value is not None:
        _unusable(value)


def _ref(image: str | bytes | bytearray | Image.Image, base: ImageBase) -> ImageRef:
    if isinstance(image, str):
        return _text_ref(image.strip(), base)
    return ImageRef(data=encode_png(image) if isinstance(image, Image.Image) else bytes(image))


def _unusable(value: Any) -> NoReturn:
    raise RowError(
        Kind.BAD_ROW,
        f"the image column holds a {type(value).__name__}; "
        "give a path, a list of paths, a data URI, or image bytes",
    )


def _text_ref(text: str, base: ImageBase) -> ImageRef:
    if text[:5].lower() == "data:":
        return ImageRef(data=data_uri_bytes(text))
    if (data := base64_image(text)) is not None:
        return ImageRef(data=data)
    if not is_encodable(text):
        raise RowError(Kind.BAD_ROW, f"{_short(text)} is not a path")
    scheme = _scheme(text)
    if scheme in {"http", "https"}:
        return _web_ref(text, base)
    if scheme not in {"", "s3"}:
        # Show only the scheme: the rest of a signed URL is a secret.
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{scheme}:// images are not fetched; give a local path, or an http(s):// or s3:// URL",
        )
    if len(text) > _MAX_NAME and (
        len(text) > _MAX_PATH or max(map(len, re.split(r"[/\\]", text))) > _MAX_NAME
    ):
        message = f"a text of {len(text):,} characters is no path, and no image in base64"
        raise RowError(Kind.BAD_ROW, f"{message} ({_short(text, 40)})")
    if scheme:
        text = f"s3://{text[5:]}"
    ref = _located(text, base, is_remote=bool(scheme))
    if not is_encodable(str(ref.path)):
        raise RowError(Kind.BAD_ROW, f"{_short(text)} is not a path")
    return ref


def _located(text: str, base: ImageBase, *, is_remote: bool) -> ImageRef:
    if base.image_root is not None:
        return _inside_root(text, base.image_root, base)
    if base.is_confined and base.folder is not None:
        return _inside_folder(text, base.folder, base)
    return ImageRef(path=text) if is_remote else _find(text, base.folder)


def _scheme(text: str) -> str:
    """The scheme in lower case; empty for a local path."""
    match = _SCHEME.match(text) if ":" in text else None
    return (match[1] or match[2]).lower() if match else ""


def _web_ref(url: str, base: ImageBase) -> ImageRef:
    if base.image_root is not None:
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{display_url(url)} is not inside the image root {base.image_root}",
        )
    return ImageRef(path=str(parse_image_url(url)))


def _find(path: str, folder: str | None) -> ImageRef:
    """Look up a path in the dataset's folder, then in the working directory."""
    if folder is not None and folder.startswith("s3://") and not path.startswith("/"):
        return ImageRef(path=_join_s3(folder, path))
    if found := file_at(joined(path, folder or os.getcwd())):  # noqa: PTH109
        return found
    folders = [folder or str(Path.cwd()), str(Path.cwd())]
    for spelling in spellings(path):
        for parent in folders:
            if found := file_at(joined(spelling, parent)):
                return found
    where = "" if path.startswith("/") else f" in {' or '.join(dict.fromkeys(folders))}"
    raise _missing(path, where)


def _missing(path: str, where: str) -> RowError:
    hint = ""
    if is_windows_path(path):
        hint = "; it is a path of a Windows machine: give one relative to the dataset's folder"
    elif not path.isascii():
        hint = "; its letters were also looked up composed and decomposed (Unicode NFC and NFD)"
    return RowError(Kind.IMAGE_MISSING, f"there is no file {_short(path)}{where}{hint}")


def _join_s3(folder: str, path: str) -> str:
    """The URI of a relative path. An empty part (`a//b`) belongs to the key: S3 has no folders."""
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    key: list[str] = prefix.split("/") if prefix else []
    for part in path.split("/"):
        if part == ".." and not key:
            raise RowError(Kind.IMAGE_REFUSED, f"{_short(path)} leads out of the bucket {bucket}")
        if part == "..":
            key.pop()
        elif part != ".":
            key.append(part)
    return f"s3://{bucket}/{'/'.join(key)}"


def _inside_folder(path: str, folder: str, base: ImageBase) -> ImageRef:
    if not folder.startswith("s3://"):
        return _inside_root(path, folder, base)
    bucket = "/".join(folder.split("/")[:3])
    if path.startswith(f"{bucket}/") and ".." not in path.split("/"):
        return ImageRef(path=path)
    if path.startswith(("/", "s3://")):
        raise _outside(path, bucket)
    return ImageRef(path=_join_s3(folder, path))


def _inside_root(path: str, root: str, base: ImageBase) -> ImageRef:
    if root.startswith("s3://"):
        uri = path if path.startswith("s3://") else f"{root.rstrip('/')}/{path}"
        escapes = path.startswith("/") or ".." in path.split("/")
        if escapes or not uri.startswith(f"{root.rstrip('/')}/"):
            raise _outside(path, root)
        return ImageRef(path=uri)
    if path.startswith("s3://"):
        raise _outside(path, root)
    for spelling in spellings(path):
        try:
            # Resolve links before the check, not after it.
            home = base.real_folder(root)
            place = joined(spelling, home)
            if ".." in place.split("/") or os.path.islink(place):  # noqa: PTH114
                place = str(Path(place).resolve())
            parent, _, name = place.rpartition("/")
            place = f"{base.real_folder(parent or '/').rstrip('/')}/{name}"
        except (OSError, RuntimeError, ValueError):
            raise RowError(Kind.BAD_ROW, f"{_short(path)} is not a path") from None
        if not is_inside(place, home):
            raise _outside(path, root)
        if found := file_at(place):
            return found
    raise _missing(path, f" in {root}")


def _short(text: str, limit: int = 120) -> str:
    """Untrusted text, made safe for a one-line message."""
    return repr(text if len(text) <= limit else f"{text[: limit - 3]}...")


def _outside(path: str, root: str) -> RowError:
    return RowError(
        Kind.IMAGE_REFUSED,
        f"{_short(path)} is not inside the image root {root} (images.root); set that to a folder "
        "from which the path stays inside",
    )


def encode_png(image: Image.Image) -> bytes:
    """Encode a PIL image losslessly, and upright, since its EXIF orientation would be lost."""
    encoded = io.BytesIO()
    try:
        shown = upright(image)
        if shown.mode not in _PNG_MODES:  # for depths `convert` would clip them at 255
            shown, _ = decode(shown, shown.size, profile=shown.info.get("icc_profile"))
        shown.save(encoded, "PNG", compress_level=1)
    except Exception as error:  # of any type, if it was opened from a corrupted file
        raise RowError(Kind.IMAGE_BROKEN, f"a PIL image that cannot be encoded: {error}") from None
    return encoded.getvalue()
