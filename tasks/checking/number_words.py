"""Numbers in words of English, and numbers with and without their zeros, in one form."""

import re
from collections.abc import Sequence
from decimal import Decimal


def _counted(words: str, first: int = 0) -> dict[str, int]:
    return {word: value for value, word in enumerate(words.split(), first)}


_SMALL = _counted(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = {
    word: 10 * value
    for word, value in _counted("twenty thirty forty fifty sixty seventy eighty ninety", 2).items()
}
_TIMES = {"hundred": 100, "dozen": 12}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_MORE, _LESS = frozenset(("more", "greater", "over")), frozenset(("less", "fewer", "under"))

NUMBER_WORDS = frozenset((*_SMALL, *_TENS, *_TIMES, *_SCALES, "minus", "than", "over", "under"))
"""What `with_digits` changes."""

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})++(?:\.\d++)?+")

_LONGEST = 15
"""Digits of a number that is multiplied: more are no count."""


def plain_number(number: str) -> str:
    """A number with a decimal point and nothing that says nothing: "1,007.50" is 1007.5.

    What is no number with at most one decimal point, such as "10:30", stays as it is.
    """
    number = number.replace("−", "-")  # noqa: RUF001
    if "," in number:
        number = number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    sign, digits = ("-", number[1:]) if number[:1] == "-" else ("", number)
    whole, point, part = digits.partition(".")
    if not (whole + part).isdecimal():
        return number
    whole = whole.lstrip("0") or "0"
    part = part.rstrip("0") if point else ""
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def with_digits(words: Sequence[str]) -> list[str]:
    """The words with digits instead of number words: "twenty", "one" becomes "21".

    A number that is a bound ends with > or <: "more", "than", "twenty" becomes "20>".

    Args:
        words: of a text; "&" stands for "and".
    """
    result: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word in _SMALL or word in _TENS or word in _TIMES or word in _SCALES:
            number, position = _number(words, position)
        elif _is_scaled(words, position):
            scale = _SCALES[words[position + 1]]
            number, position = format((Decimal(word) * scale).normalize(), "f"), position + 2
        else:
            number, position = word, position + 1
        if result[-1:] == ["minus"] and number[0].isdecimal():
            result.pop()
            number = f"-{number}"
        if number[0].isdecimal():
            number += _bound(result)
        result.append(number)
    return result


def _bound(words: list[str]) -> str:
    """Takes what makes the next number a bound off the end of the words: > or <, or nothing."""
    count = 2 if words[-1:] == ["than"] else 1
    word = words[-count] if len(words) >= count else ""
    if word not in _MORE | _LESS or (count == 1 and word not in {"over", "under"}):
        return ""
    del words[-count:]
    return ">" if word in _MORE else "<"


def _is_scaled(words: Sequence[str], position: int) -> bool:
    """Whether it is a number in digits before a word such as "million"."""
    word = words[position]
    return (
        word[0].isdecimal()
        and len(word) <= _LONGEST
        and word.replace(".", "", 1).isdecimal()
        and position + 1 < len(words)
        and words[position + 1] in _SCALES
    )


def _number(words: Sequence[str], position: int) -> tuple[str, int]:
    """The number that starts at a position, and the position after it."""
    total = current = 0
    scale = 10**15
    before = ""
    while position < len(words):
        word = words[position]
        if word in _SMALL and before in {
            "",
            "times",
            "scale",
            *(("tens",) if _SMALL[word] else ()),
        }:
            if before == "tens" and _SMALL[word] > 9:
                break
            current, before = current + _SMALL[word], "small"
        elif word in _TENS and before in {"", "times", "scale"}:
            current, before = current + _TENS[word], "tens"
        elif word in _TIMES and before in {"", "small", "tens", "scale"} and current < 100:
            current, before = (current or 1) * _TIMES[word], "times"
        elif word in _SCALES and _SCALES[word] < scale and before != "scale":
            scale = _SCALES[word]
            total, current, before = total + (current or 1) * scale, 0, "scale"
        elif not (word == "&" and before in {"times", "scale"} and _is_small(words, position + 1)):
            break
        position += 1
    return str(total + current), position


def _is_small(words: Sequence[str], position: int) -> bool:
    return position < len(words) and (words[position] in _SMALL or words[position] in _TENS)
