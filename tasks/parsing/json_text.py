"""Question-answer pairs from JSON objects anywhere in a text."""

import json
import re

from ..records import QAPair

_QUESTION_KEYS = ("question", "q", "问题", "问")
_ANSWER_KEYS = ("answer", "a", "答案", "回答", "答")

_OBJECT_START = re.compile(r'\{\s*+"')

# For each failed attempt, `JSONDecodeError` counts all lines before the position. A text with this
# many braces that do not open JSON is a model stuck in a loop, or an attack.
_MAX_ERRORS = 1000


def json_pairs(text: str) -> list[QAPair]:
    """The pairs in all JSON objects of a text; [] if there are none. Never raises.

    Objects may be bare, in arrays, one per line, nested under other keys, in code fences or
    surrounded by prose. Complete objects in a corrupted array count. Numbers and booleans keep
    their spelling.
    """
    pairs: list[QAPair] = []

    def collect(items: list[tuple[str, object]]) -> None:
        values = {key.strip().casefold(): value for key, value in items}
        question, answer = _first_text(values, _QUESTION_KEYS), _first_text(values, _ANSWER_KEYS)
        if question and answer:
            pairs.append(QAPair(question, answer))

    # The hook is called as each object ends, even inside one that later turns out corrupted.
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
            break  # nested hundreds of levels deep: not a real reply; every level would fail again
    return pairs


def _first_text(values: dict[str, object], keys: tuple[str, ...]) -> str:
    """The first value under one of the keys that is a string, number or boolean; else ""."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
