"""Reads style files: Markdown with a YAML head, and a section for each message."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path

from ...serving.printable import printable
from ..errors import ImageQAError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import read_object
from ..records import ImageRef
from .style_examples import (
    MAX_IMAGE_BYTES,
    ExampleTurn,
    ReadImage,
    is_image_line,
    parse_examples,
)
from .style_head import StyleHead, parse_head
from .style_sections import Section, split_head, split_sections
from .templates import Template, compile_template

SUFFIX = ".md"
MAX_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class StyleFile:
    """A style as its file describes it.

    Attributes:
        where: path or URI of the file, for messages.
        text: its content.
        head: its YAML head.
        sections: the messages that it asks with: name of the section -> template.
        type: template of the type of the questions.
        language: template of the language of the pairs.
        question: template of the question that a reply answers; None for the user message.
        examples: turns that come before a row's own.
    """

    where: str
    text: str = field(repr=False)
    head: StyleHead
    sections: Mapping[str, Template]
    type: Template
    language: Template
    question: Template | None
    examples: tuple[ExampleTurn, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images of its examples, in order."""
        return tuple(image for turn in self.examples for image in turn.images)

    @cached_property
    def columns(self) -> frozenset[str]:
        """All names in its templates that may be columns of the dataset."""
        templates = [
            self.type,
            self.language,
            *self.sections.values(),
            *(turn.template for turn in self.examples),
        ]
        names = frozenset[str]().union(*(template.names for template in templates))
        return names if self.question is None else names | self.question.names

    @property
    def digest(self) -> str:
        """Identifies the content of the file and of its images."""
        contents = [self.text.encode(), *(image.data or b"" for image in self.images)]
        digests = b"".join(hashlib.sha256(content).digest() for content in contents)
        return hashlib.sha256(digests).hexdigest()


def built_in_names() -> list[str]:
    """The names of the styles that are files of this package, sorted."""
    found = (entry.name for entry in files(__package__).joinpath("styles").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))


def read_built_in(name: str) -> StyleFile:
    """A style of this package."""
    text = files(__package__).joinpath("styles", f"{name}{SUFFIX}").read_text("utf-8")
    return parse_style(text, f"style {name}", _no_image)


def read_built_in_head(name: str) -> StyleHead:
    """What a style of this package says about itself, without compiling its templates."""
    text = files(__package__).joinpath("styles", f"{name}{SUFFIX}").read_text("utf-8")
    return parse_head(split_head(text, f"style {name}")[0], f"style {name}")


def read_style(path: str, credentials: S3Credentials | None = None) -> StyleFile:
    """Read and check a style file, with the images of its examples.

    Args:
        path: a local path or `s3://` URI.
        credentials: of S3; None for those of the environment.

    Raises:
        ImageQAError: it cannot be read, or is no valid style; in one line.
    """
    where = printable(path, 200)
    data = read_object(path, MAX_FILE_BYTES + 1, credentials)
    if len(data) > MAX_FILE_BYTES:
        raise ImageQAError(f"{where} is no style: it is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ImageQAError(f"{where} is no style: it is not UTF-8 text") from None
    return parse_style(text, where, partial(_read_beside, path, credentials))


def parse_style(text: str, where: str, read_image: ReadImage) -> StyleFile:
    """Check the text of a style.

    Args:
        text: the whole file.
        where: the file, for messages.
        read_image: reads the images of its examples.

    Raises:
        ImageQAError: it is no valid style.
    """
    head_text, line, lines = split_head(text, where)
    head = parse_head(head_text, where)
    sections = split_sections(lines, line, where)
    examples = sections.pop("examples", None)
    _check_images(sections.values(), where)
    return StyleFile(
        where=where,
        text=text,
        head=head,
        sections={
            title: compile_template("\n".join(content), where, first)
            for title, first, content in sections.values()
        },
        type=compile_template(head.type, f"{where}: type"),
        language=compile_template(head.language, f"{where}: language"),
        question=compile_template(head.question, f"{where}: question") if head.question else None,
        examples=parse_examples(examples, where, read_image) if examples else (),
    )


def _check_images(sections: Iterable[Section], where: str) -> None:
    """Refuse images outside the examples: they would be sent as text."""
    for title, first, lines in sections:
        for number, line in enumerate(lines, first):
            if is_image_line(line):
                raise ImageQAError(
                    f"{where}, line {number}: section `# {title}` has an image, which belongs into "
                    "`# examples`; the images of a row are sent by themselves"
                )


def _no_image(_: str) -> bytes:
    raise ImageQAError("a built-in style has no images")


def _read_beside(style: str, credentials: S3Credentials | None, name: str) -> bytes:
    """Read an image in the folder of a style file, or below it.

    Nothing else is read: a run may name a style that is not of the account that it runs as.
    """
    if "://" in name or name.startswith(("/", "data:")) or ".." in name.split("/"):
        raise ImageQAError("give a path relative to the style file, in its folder or below")
    if "://" in style:
        uri = f"{style.rpartition('/')[0]}/{name}"
        return read_object(uri, MAX_IMAGE_BYTES + 1, credentials)
    folder = Path(style).expanduser().resolve().parent
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null character
        raise ImageQAError("it is no path that can be followed") from None
    if not path.is_relative_to(folder):
        raise ImageQAError("it is a link that leaves the folder of the style file")
    return read_object(str(path), MAX_IMAGE_BYTES + 1)
