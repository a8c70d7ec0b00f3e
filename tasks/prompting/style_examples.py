"""Few-shot examples of a style file: turns before a row's own, with images."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...serving.printable import printable
from ..errors import ImageQAError
from ..images.prepare import ImageSettings, prepare_image
from ..records import ImageRef, RowError
from .style_sections import Section, split_turns
from .templates import Template, compile_template

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 2 << 20
"""They are sent with every row, so they had better be small."""

# Bounded and without backtracking: a file could otherwise keep the search busy for minutes.
_IMAGE = re.compile(r"!\[[^\]\n]{0,500}+\]\(([^)\n]{0,500}+)\)")

_FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")

ReadImage = Callable[[str], bytes]
"""Reads an image, given as it is written in the file."""


@dataclass(frozen=True, slots=True)
class ExampleTurn:
    """A turn of an example.

    Attributes:
        role: whose turn it is.
        template: its text.
        images: its images, which come before the text.
    """

    role: Literal["user", "assistant"]
    template: Template
    images: tuple[ImageRef, ...] = ()


def is_image_line(text: str) -> bool:
    """Whether a line is an image file in Markdown, and nothing else."""
    image = _IMAGE.fullmatch(text.strip())
    return image is not None and image[1].strip("<> \t").lower().endswith(_FILE_SUFFIXES)


def parse_examples(section: Section, where: str, read_image: ReadImage) -> tuple[ExampleTurn, ...]:
    """The turns of the section `# examples`.

    Args:
        section: its lines.
        where: the file, for messages.
        read_image: reads their images.

    Raises:
        ImageQAError: it is not valid, or an image cannot be used.
    """
    turns, count = list[ExampleTurn](), 0
    for role, line, lines in split_turns(section, where):
        text = "\n".join(lines)
        names = [name.strip().removeprefix("<").removesuffix(">") for name in _IMAGE.findall(text)]
        count += len(names)
        if names and role == "assistant":
            raise ImageQAError(f"{where}, line {line}: an image in an answer; it is the user's")
        if count > MAX_IMAGES:
            raise ImageQAError(f"{where}, line {line}: the examples have over {MAX_IMAGES} images")
        images = tuple(_image(name, f"{where}, line {line}", read_image) for name in names)
        template = compile_template(_IMAGE.sub("", text), where, line)
        turns.append(ExampleTurn("user" if role == "user" else "assistant", template, images))
    return tuple(turns)


def _image(name: str, where: str, read_image: ReadImage) -> ImageRef:
    shown = f"{where}: image {printable(name, 100)!r} of an example"
    try:
        data = read_image(name)
        if len(data) > MAX_IMAGE_BYTES:
            raise ImageQAError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB")
        prepare_image(data, ImageSettings())
    except (ImageQAError, RowError) as error:
        raise ImageQAError(f"{shown}: {error}") from None
    return ImageRef(data=data)
