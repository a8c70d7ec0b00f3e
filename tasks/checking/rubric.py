"""What a judge rates: a Markdown file with a section for each axis."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...serving.printable import printable
from ..errors import ImageQAError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import read_object
from ..prompting.style_sections import parts_of

MAX_RUBRIC_BYTES = 16 << 10
"""A rubric is sent with every pair."""

MAX_AXES = 10

REASON = "reason"
"""What the judge says about all axes, and so the name of none."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that is rated from 1 to 5.

    Attributes:
        name: of a-z, 0-9 and underscores; part of the name of its column.
        text: what is rated.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Rubric:
    """Axes in order, and what is said before them."""

    axes: tuple[Axis, ...]
    introduction: str = ""


def read_rubric(uri: str, credentials: S3Credentials | None = None) -> Rubric:
    """Read a rubric.

    Args:
        uri: a local path or `s3://` URI.
        credentials: of S3; None for those of the environment.

    Raises:
        ImageQAError: it cannot be read, or has no axes; in one line.
    """
    where = printable(uri, 200)
    try:
        data = read_object(uri, MAX_RUBRIC_BYTES + 1, credentials)
    except ObjectMissingError:
        raise ImageQAError(f"there is no rubric {where}") from None
    if len(data) > MAX_RUBRIC_BYTES:
        raise ImageQAError(
            f"{where} is larger than the {MAX_RUBRIC_BYTES >> 10} KiB that a rubric may have: it "
            "is sent with every pair"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImageQAError(f"{where} is no rubric: it is not UTF-8 text") from None
    return parse_rubric(text, where)


def parse_rubric(text: str, where: str) -> Rubric:
    """The rubric of a Markdown text: each heading `# name` begins an axis.

    Args:
        text: the whole file.
        where: the file, for messages.

    Raises:
        ImageQAError: it has no axes, too many, the same twice, or one without a text.
    """
    introduction, axes = "", dict[str, Axis]()
    for title, line, content in parts_of(text.replace("\r\n", "\n").split("\n"), 1, 1):
        body = "\n".join(content).strip()
        if not title:
            introduction = body or introduction
            continue
        axis, place = Axis(_name(title), body), f"{where}, line {line - 1}"
        shown = printable(title, 40)
        if not _NAME.fullmatch(axis.name):
            raise ImageQAError(
                f"{place}: an axis `# {shown}` cannot name a column; its name needs letters a-z, "
                "digits, spaces and hyphens, and up to 40 of them"
            )
        if axis.name == REASON or axis.name in axes:
            wrong = "there twice" if axis.name in axes else "the name of the judge's reasons"
            raise ImageQAError(f"{place}: axis `# {shown}` is {wrong}")
        if not body:
            raise ImageQAError(f"{place}: axis `# {shown}` does not say what is rated")
        axes[axis.name] = axis
    if not axes:
        raise ImageQAError(
            f"{where} has no axes: begin a section `# name` for each thing that is rated 1 to 5"
        )
    if len(axes) > MAX_AXES:
        raise ImageQAError(f"{where} has {len(axes)} axes, over the {MAX_AXES} of a rubric")
    return Rubric(tuple(axes.values()), introduction)


def _name(title: str) -> str:
    return re.sub(r"[\s-]++", "_", title.strip().casefold())


def axis_names(rubric: Rubric) -> Sequence[str]:
    """The names of its axes, in order."""
    return [axis.name for axis in rubric.axes]


BUILT_IN = parse_rubric(
    """\
# formatting
How good is the answer's language and form? 5: a clear, complete answer without mistakes. 3: it can
be understood, but is clumsy, cut off or badly laid out. 1: garbled.

# relevance
Does the answer properly respond to the question? 5: fully, and to nothing else. 3: in part. 1: it
answers another question, or none.

# visual
How much does the question depend on the image? 5: it cannot be answered without looking. 3: a good
guess is possible. 1: the question itself or general knowledge gives the answer.

# correspondence
How well does the image support the question and the answer? 5: it shows all that is asked and said.
3: some of it cannot be seen. 1: what is asked is not there, or the answer contradicts the image.
""",
    "the built-in rubric",
)
"""The four axes that FineVision (Hugging Face, 2025) rates every turn on: text formatting quality,
question-answer relevance, visual dependency, image-question correspondence. There the last one is
about image and question only; here it is about the answer too."""
