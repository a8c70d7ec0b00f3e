"""Text of others (servers, file names, columns) made safe for one line of a terminal or log."""

import re
import traceback

INVISIBLE = (
    r"\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f"
)
"""Characters that hide in a text or change the direction of the text around them, as a part of a
regular expression. The two zero-width joiners are none of them: they shape letters and emoji."""

_UNSAFE = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029{INVISIBLE}]")
"""These, line separators, and control characters, some of which start an escape sequence."""


def printable(text: str, limit: int | None = None) -> str:
    r"""The text on one line, without what a terminal would act on.

    White space becomes single spaces, any other control character its escape (`\x1b`), and a lone
    surrogate `?`.

    Args:
        text: of any origin.
        limit: characters that are kept; a longer text ends in "...".
    """
    if limit is not None:
        text = text[: 8 * limit]  # bounded work, whatever the length
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    line = _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), line)
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


def printable_lines(text: str) -> str:
    """The same for a message that may have several lines, such as the end of a server's log.

    All lines but the first are indented, so that none looks like a message of its own.
    """
    return "\n  ".join(map(printable, text.strip().split("\n")))


def printable_traceback(error: BaseException) -> str:
    """The same for an error with its traceback, whose lines stay as they are."""
    lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + printable(line) for line in lines)
