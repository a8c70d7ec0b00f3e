"""The answer to the question that a row was asked: the whole reply, as text or as JSON."""

from ..records import Asked, QAPair
from .choices import normal
from .extras import FIELDS, named
from .found_pairs import FoundPairs
from .json_fields import is_answer, text_of
from .json_values import NotJSONError, json_value
from .labelled_text import labelled_pairs, value_after
from .labels import ANSWER, QUESTION, alternatives, line_label

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


def find_answer(text: str, asked: Asked) -> FoundPairs:
    """The answer in a reply, as a pair with the question that was asked.

    A label before it ("Answer:", "Caption:") is left out, and so is the question if the reply
    repeats it.
    """
    if not asked.question:
        return FoundPairs([], 0, "answers a message that asks nothing")
    try:
        value = json_value(text)
    except NotJSONError:
        return FoundPairs([], 1, "is JSON that is cut off or damaged")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        pair = _json_answer(value, asked.question)
        return FoundPairs([pair]) if pair else FoundPairs([], 1, "is JSON without an answer")
    pair = _labelled_answer(text, asked.question) or QAPair(asked.question, text)
    return FoundPairs([pair] if pair.answer else [])


def _json_answer(value: dict[str, object], question: str) -> QAPair | None:
    members = {name.strip(): text for name, member in value.items() if (text := text_of(member))}
    names = [name for name in members if is_answer(name)]
    names += [name for name in members if normal(name.replace("_", " ")) in _CAPTIONS]
    if not names and len(members) == 1 and len(value) == 1:
        names = list(members)
    if not names:
        return None
    extras = named((field, text) for name, text in members.items() if (field := _extra(name)))
    return QAPair(question, members[names[0]], **extras)


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
