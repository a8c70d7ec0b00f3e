"""A reply that is JSON as a whole: the value it stands for."""

import json
import re

from .json_escapes import repair_escapes

_FENCE = re.compile(r"```[\w-]*+[^\S\n]*+\n(?P<inside>(?:(?!```).)*+)(?:```|\Z)", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(?=\s*+[\]}])")


class NotJSONError(ValueError):
    """A text is no JSON, though it begins like it."""


def json_value(text: str) -> object:
    """The value of a text that is JSON; None if it does not look like it.

    Raises:
        NotJSONError: it begins like JSON, but is cut off or damaged.
    """
    body = text.strip()
    if not re.match(r'\{\s*+["}]|\[\s*+["{\]]', body):
        return None
    body = repair_escapes(body)
    for candidate in (body, _TRAILING_COMMA.sub("", body)):
        try:
            value, end = _DECODER.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if not candidate[end:].strip("` \n"):
            return value
    raise NotJSONError(text)


def fenced(text: str) -> str:
    """What is in the first code fence of a text; a text without one as it is."""
    fence = _FENCE.search(text)
    return text if fence is None else fence["inside"]


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)
