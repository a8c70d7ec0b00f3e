# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""The answer to the question that a row was asked: the whole reply, as text or as JSON."""

import re
from collections.abc import Iterable, Mapping

from ..records import Asked, QAPair
from .choices import normal
from .extras import FIELDS, named
from .found_pairs import FoundPairs
from .json_fields import is_answer, is_question, text_of
from .json_values import NotJSONError, fenced, json_value
from .labelled_text import labelled_pairs, value_after
from .labels import ANSWER, ANSWER_LETTERS, QUESTION, alternatives, line_label

_CAPTION_WORDS = (
    *(
        "caption",
        "description",
        "image description",
        "response",
        "描述",
        "图片描述",
        "图像描述",
        "説明",
    ),
    *(
        "설명",
        "descripción",
        "descrição",
        "légende",
        "beschreibung",
        "bildbeschreibung",
        "descrizione",
    ),
    *("описание", "الوصف", "विवरण"),
)
_LABEL = line_label(answer=f"{ANSWER}|{alternatives(_CAPTION_WORDS)}", question=QUESTION)
"""A letter would be too little: "A: B" may be all of an answer."""


_PREAMBLE = re.compile(
    r"""\A (?:(?:sure|certainly|of\ course|absolutely|okay)[,!.]?+\s++)?+
        here(?:['’]s|\ is|\ are)\s[^\n:]{0,120}+:[^\S\n]*+\n\s*+
      | \A (?:好的|当然)?+[，,。！!]?+(?:以下是|这是|下面是)[^\n：:]{0,60}+[：:][^\S\n]*+\n\s*+
    """,
    re.IGNORECASE | re.VERBOSE,
)


_FENCE_ALONE = re.compile(r"\s*+```(?:(?!```).)*+(?:```\s*+)?", re.DOTALL)


def find_answer(text: str, asked: Asked) -> FoundPairs:
    """The answer in a reply, as a pair with the question that was asked.

    An introduction ("Here is a caption:") and a label before it ("Answer:", "Caption:") are left
    out, and so is the question if the reply repeats it.
    """
    if not asked.question:
        return FoundPairs([], 0, "answers a message that asks nothing")
    text = _PREAMBLE.sub("", text, count=1)
    # A fence within prose is quoted from the image.
    body = fenced(text) if _FENCE_ALONE.fullmatch(text) else text
    try:
        value = json_value(body)
    except NotJSONError:
        return FoundPairs([], 1, "is JSON that is cut off or damaged")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    pair = _json_answer(value, asked.question, is_fenced=body != text)
    if pair is None and _should_answer(value):
        return FoundPairs([], 1, "is JSON without an answer")
    # JSON of something else may be just what was asked for.
    pair = pair or _labelled_answer(text, asked.question) or QAPair(asked.question, text)
    return FoundPairs([pair] if pair.answer else [])


def is_caption(name: str) -> bool:
    """Whether the value of a key should be a caption."""
    return normal(name.replace("_", " ")) in _CAPTIONS


def _json_answer(value: object, question: str, *, is_fenced: bool) -> QAPair | None:
    if not isinstance(value, dict):
        return None
    members = {name.strip(): text for name, member in value.items() if (text := text_of(member))}
    names = _answer_keys(members, value) + [name for name in members if is_caption(name)]
    if not names and len(members) == len(value) == 1 and not is_fenced:
        names = [name for name in members if len(name) > 1 and not _is_aside(name)]
    if not names:
        return None
    extras = named((field, text) for name, text in members.items() if (field := _extra(name)))
    return QAPair(question, members[names[0]], **extras)


def _answer_keys(names: Iterable[str], value: Mapping[str, object]) -> list[str]:
    """The names of members that should be answers; a letter alone only beside a question."""
    has_question = any(map(is_question, value))
    return [
        name
        for name in names
        if is_answer(name) and (has_question or name.strip().casefold() not in ANSWER_LETTERS)
    ]


def _should_answer(value: object) -> bool:
    """Whether JSON without an answer stands for one: it is empty, an error, or has the key of one.

    Args:
        value: the JSON, or anything else.
    """
    if isinstance(value, list):
        return not value or any(isinstance(each, dict) and _has_answer(each) for each in value)
    if not isinstance(value, dict):
        return False
    is_error = any(_is_error(name) and text_of(member) for name, member in value.items())
    is_empty = any(
        is_caption(name) and (member is None or (isinstance(member, str) and not text_of(member)))
        for name, member in value.items()
    )
    return is_error or is_empty or all(map(_is_aside, value)) or _has_answer(value)


def _has_answer(value: Mapping[str, object]) -> bool:
    return bool(_answer_keys(value, value)) or any(normal(name) == "answers" for name in value)


def _is_aside(name: str) -> bool:
    """Whether the value of a key is no answer, whatever else it is."""
    return _is_error(name) or is_question(name) or bool(_extra(name))


def _is_error(name: str) -> bool:
    return normal(name) in {"error", "refusal"}


_CAPTIONS = {normal(word) for word in (*_CAPTION_WORDS, "text", "content", "detailed caption")}
_EXTRAS = {normal(word): field for field, words in FIELDS.items() for word in words}


def _extra(name: str) -> str:
    return _EXTRAS.get(normal(name.replace("_", " ")), "")


def _labelled_answer(text: str, question: str) -> QAPair | None:
    """What follows a label at the start of a reply; None if there is none."""
    label = _LABEL.match(text)
    if label is None:
        return None
    if label["question"]:
        pairs = labelled_pairs(text).pairs
        if len(pairs) == 1 and normal(pairs[0].question) == normal(question):
            pair = pairs[0]
            extras = named((field, getattr(pair, field, "")) for field in FIELDS)
            return QAPair(question, pair.answer, **extras)
        return None
    answer, extras = value_after(text, label, len(text))
    return QAPair(question, answer, **extras)
