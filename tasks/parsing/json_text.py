"""Question-answer pairs in JSON, wherever it stands in a text."""

import json
import re

from ..records import QAPair

_QUESTION_KEYS = ("question", "q", "问题", "问")
_ANSWER_KEYS = ("answer", "a", "答案", "回答", "答")

_OBJECT_START = re.compile(r'\{\s*+"')

# Each failed attempt costs a count of all lines before it. A text with this many braces that
# open no JSON is a loop or an attack.
_MAX_ERRORS = 1000


def json_pairs(text: str) -> list[QAPair]:
    """The pairs in every JSON object of a text; [] where there are none. Never raises.

    Objects may be bare, in arrays, one a line, nested under other keys, in code fences or amid
    prose. Complete objects of a corrupted array count. Numbers and `true` are kept as written.
    """
    pairs: list[QAPair] = []

    def collect(items: list[tuple[str, object]]) -> None:
        values = {key.strip().casefold(): value for key, value in items}
        question, answer = _first_text(values, _QUESTION_KEYS), _first_text(values, _ANSWER_KEYS)
        if question and answer:
            pairs.append(QAPair(question, answer))

    # The hook sees each object as it ends, also within one that turns out to be corrupted.
    decoder = json.JSONDecoder(
        object_pairs_hook=collect, parse_int=str, parse_float=str, parse_constant=str, strict=False
    )
    position, errors = 0, 0
    while errors < _MAX_ERRORS and (start := _OBJECT_START.search(text, position)):
        try:
            _, position = decoder.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            errors += 1
            position = max(error.pos, start.start() + 1)
        except RecursionError:
            break  # nested hundreds deep: no reply, and every level would fail again
    return pairs


def _first_text(values: dict[str, object], keys: tuple[str, ...]) -> str:
    """The first value under one of the keys that is a text, number or truth value; else ""."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
