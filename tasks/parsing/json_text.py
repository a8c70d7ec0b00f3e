# ruff: noqa: RUF001 (quotation marks of several languages)
"""Question-answer pairs from JSON objects anywhere in a text, also from damaged ones."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from re import Match

from ..records import QAPair
from .found_pairs import FoundPairs
from .json_escapes import repair_escapes
from .json_fields import Items, is_answer, is_question, object_pairs, parallel_pairs, text_of
from .labels import ANSWER_LETTERS, TURN_WORDS

_OBJECT_START = re.compile(r'\{\s*+"')

# For each failed attempt, `JSONDecodeError` counts all lines before the position. A text with this
# many braces that do not open JSON is a model stuck in a loop, or an attack.
_MAX_ERRORS = 1000

_CLOSING = {'"': '"', "'": "'", "“": "”", "”": "”", "„": "“", "«": "»"}
_QUOTES = "".join(_CLOSING)
_DAMAGED_KEY = re.compile(
    rf"(?P<before>[{{,，])\s*+[{_QUOTES}](?P<name>[^{_QUOTES}»{{}}\[\]:,\n]{{1,40}}+)[{_QUOTES}»]"
    r"\s*+[:：]\s*+"
)
_END_OF_VALUE = {
    closing: re.compile(rf"{closing}\s*+[,，]?\s*+[}}\]]") for closing in set(_CLOSING.values())
}
_SCALAR = re.compile(r"(-?\d[\d.eE+-]*+|true|false|True|False)\s*+(?:[,，}\]]|$)")
_NO_TEXT = re.compile(r"[\[{]|null\b|None\b")
_STRING = re.compile(r""" "(?:[^"\\\n]|\\.)*+" | '(?:[^'\\\n]|\\.)*+' | “[^”\n]*+” """, re.VERBOSE)
_TEXTS = re.compile(rf"\[\s*+(?:(?:{_STRING.pattern})\s*+[,，]?+\s*+)++\]", re.VERBOSE)
_QUOTE_OR_ESCAPE = re.compile(r'\\.|"', re.DOTALL)


def json_pairs(text: str) -> FoundPairs:
    """The pairs in all JSON objects of a text. Never raises.

    Objects may be bare, in arrays, one per line, nested under other keys, in code fences or
    surrounded by prose. Complete objects in a corrupted array count. Numbers and booleans keep
    their spelling. Objects that are JSON but for trailing commas, other quotation marks or
    quotation marks within a text are read too, if each of their texts has a clear end.
    """
    text = repair_escapes(text)
    expected = sum(map(_is_question, _DAMAGED_KEY.finditer(text)))
    found = _sound_pairs(text, expected)
    if found.lost:
        # Only if it gives more: what is read strictly is certain.
        damaged = _damaged_pairs(text, expected)
        if len(damaged.pairs) > len(found.pairs):
            return damaged
    return found


def _is_question(key: Match[str]) -> bool:
    is_nested = key.string[key.end() : key.end() + 1] in {"{", "["}
    return is_question(key["name"]) and not is_nested


def json_turns(text: str) -> FoundPairs:
    """The pairs of a dialogue in messages such as `{"role": "user", "content": ...}`."""
    messages: list[tuple[str, str]] = []

    def read(items: Items) -> None:
        members = {name.strip().casefold(): text_of(value) for name, value in items}
        role, content = (_first(members, names) for names in (_ROLE_KEYS, _CONTENT_KEYS))
        if role and content:
            messages.append((role.casefold(), content))

    _read_objects(repair_escapes(text), read)
    pairs: list[QAPair] = []
    gaps: list[int] = []
    for (role, question), (following, answer) in pairwise([*messages, ("", "")]):
        if role in TURN_WORDS[0]:
            if following in TURN_WORDS[1]:
                pairs.append(QAPair(question, answer))
            else:
                gaps.append(len(pairs))
    return FoundPairs(pairs, len(gaps), before_gap=next(iter(gaps), None))


_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "message")


def _first(members: Mapping[str, str], names: Iterable[str]) -> str:
    return next((members[name] for name in names if members.get(name)), "")


class _Reading:
    """The pairs of the objects read so far.

    Attributes:
        pairs: in order.
        gaps: how many pairs come before each question or answer that stands alone.
        listed: how many questions are in lists beside one of answers.
    """

    def __init__(self) -> None:
        self.pairs: list[QAPair] = []
        self.gaps: list[int] = []
        self.listed = 0

    def read(self, items: Items) -> None:
        """Add the pairs among the members of an object."""
        found = list(object_pairs(items))
        if not found and any(_is_half(name) and text_of(value) for name, value in items):
            self.gaps.append(len(self.pairs))
        self.pairs.extend(found)
        for pair in parallel_pairs(items) if not found else ():
            self.listed += 1
            if pair.question and pair.answer:
                self.pairs.append(pair)
            else:
                self.gaps.append(len(self.pairs))

    def found(self, expected: int) -> FoundPairs:
        """The pairs.

        Args:
            expected: how many questions have keys of their own.
        """
        lost = max(expected + self.listed - len(self.pairs), 0)
        return FoundPairs(self.pairs, lost, before_gap=min(self.gaps, default=None))


def _is_half(name: str) -> bool:
    is_letter = name.strip().casefold() in ANSWER_LETTERS
    return is_question(name) or (is_answer(name) and not is_letter)


def _sound_pairs(text: str, expected: int) -> FoundPairs:
    reading = _Reading()
    errors: list[int] = []
    _read_objects(text, reading.read, lambda: errors.append(len(reading.pairs)))
    if expected > len(reading.pairs):
        reading.gaps += errors  # one of them may be where a question was lost
    return reading.found(expected)


def _read_objects(
    text: str, read: Callable[[Items], None], failed: Callable[[], None] = lambda: None
) -> None:
    """Call a function with the members of every JSON object in a text, inner ones first.

    Args:
        text: the text.
        read: the function.
        failed: called where an object turns out corrupted.
    """

    # Called as each object ends, even inside one that later turns out corrupted.
    def hook(items: list[tuple[str, object]]) -> dict[str, object]:
        read(items)
        return dict(items)

    decoder = json.JSONDecoder(
        object_pairs_hook=hook, parse_int=str, parse_float=str, parse_constant=str, strict=False
    )
    position, errors = 0, 0
    while errors < _MAX_ERRORS and (start := _OBJECT_START.search(text, position)):
        try:
            _, position = decoder.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            errors += 1
            failed()
            position = max(error.pos, start.start() + 1)
        except RecursionError:
            break  # nested hundreds of levels deep: not a real reply; every level would fail again


def _damaged_pairs(text: str, expected: int) -> FoundPairs:
    """The pairs of objects that no JSON parser reads, from one key to the next.

    An object counts if all its texts have a clear end: what looks like a key may be part of one.
    """
    reading = _Reading()
    items: list[tuple[str, object]] = []
    is_clear = True
    keys = list(_DAMAGED_KEY.finditer(text))
    for key, following in zip(keys, [*keys[1:], None], strict=False):
        value = _damaged_value(text, key, following)
        is_clear &= value is not None
        items.append((key["name"], value))
        if following is None or following["before"] == "{":
            if is_clear:
                reading.read(items)
            else:
                reading.gaps.append(len(reading.pairs))
            items, is_clear = [], True
    return reading.found(expected)


def _damaged_value(text: str, key: Match[str], following: Match[str] | None) -> object:
    """The text or texts of a key, "" if it has none; None if the end is not clear."""
    end = len(text) if following is None else following.start()
    if scalar := _SCALAR.match(text, key.end(), end):
        return scalar[1].lower()
    if texts := _TEXTS.match(text, key.end(), end):
        return [string[1:-1] for string in _STRING.findall(texts[0])]
    if _NO_TEXT.match(text, key.end(), end):
        return ""
    closing = _CLOSING.get(text[key.end() : key.end() + 1])
    if closing is None:
        return None
    start = key.end() + 1
    if last := _END_OF_VALUE[closing].search(text, start, end):
        value = text[start : last.start()]
    elif following is not None and following["before"] != "{":
        value = text[start:end].rstrip()
        if not value.endswith(closing):
            return None
        value = value.removesuffix(closing)
    else:
        return None
    return _unescaped(value, closing)


def _unescaped(value: str, closing: str) -> str | None:
    """The text of a string of JSON in which quotation marks need not be escaped."""
    marks = [match[0] for match in _QUOTE_OR_ESCAPE.finditer(value)]
    if closing == '"' and marks.count('"') % 2:
        return None  # one of them may be the end
    escaped = _QUOTE_OR_ESCAPE.sub(lambda m: '\\"' if m[0] == '"' else m[0], value)
    try:
        return str(json.loads(f'"{escaped}"', strict=False))
    except ValueError:
        return None
