# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""Question-answer pairs among the members of one JSON object."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..records import QAPair
from .choices import LETTERS, choice_in
from .extras import FIELDS, named
from .labels import (
    ANSWER_WORDS,
    CORRECT_WORDS,
    OPTIONS_WORDS,
    QUESTION_WORDS,
)
from .multiple_choice import options_fault, split_options
from .wrappers import trim

Items = Sequence[tuple[str, object]]
"""The members of an object: names may repeat."""


# In the order in which they count, where an object has several of a field.
_KEYS: Mapping[str, Sequence[str]] = {
    "question": (
        *QUESTION_WORDS,
        *("q", "question text", "user question", "query", "instruction", "prompt", "input"),
        *("user", "human", "用户"),
    ),
    "answer": (
        *ANSWER_WORDS,
        *("a", "answer text", "final answer", "short answer", "full answer", "ground truth"),
        *("response", "completion", "output", "reply", "assistant", "gpt", "助手"),
    ),
    "correct": (
        *("correct", *CORRECT_WORDS, "correct letter", "correct label", "answer letter"),
        *("answer key", "answer option", "solution", "正确选项", "正確選項", "correcta"),
    ),
    "index": (
        "label",
        "correct index",
        "answer index",
        "answer idx",
        "correct idx",
        "correct option index",
    ),
    "options": (*OPTIONS_WORDS, "option", "choice", "alternatives", "candidates"),
    **FIELDS,
}


def _bare(name: str) -> str:
    """A key without what differs between `correct_answer`, `correctAnswer` and "Correct answer"."""
    return re.sub(r"[\s_-]++", "", unicodedata.normalize("NFC", name).casefold())


_FIELDS = {
    _bare(word): (field, rank)
    for field, words in reversed(list(_KEYS.items()))
    for rank, word in reversed(list(enumerate(words)))
}
_NAME = re.compile(r"(?P<word>.{1,40}?)[\s_#.-]*+(?P<number>\d{1,3})?")
_OPTION_NAME = re.compile(
    r"(?:(?:option|choice|opt|选项|選項)[\s_-]*+)?(?P<letter>[A-Ja-j])|(?:option|choice)[\s_-]*+\d",
    re.IGNORECASE,
)


_LETTERED = re.compile(
    r"[*_(（\[【\s]*+(?P<mark>[A-Ja-j])[*_]*+[)）\]】.．:：、][*_]*+\s++(?P<text>\S.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Key:
    field: str
    number: str
    rank: int


@lru_cache(maxsize=256)
def _key(name: str) -> _Key | None:
    match = _NAME.fullmatch(name.strip())
    known = None if match is None else _FIELDS.get(_bare(match["word"]))
    return (
        None if match is None or known is None else _Key(known[0], match["number"] or "", known[1])
    )


def is_question(name: str) -> bool:
    """Whether the value of a key should be a question."""
    key = _key(name)
    return key is not None and key.field == "question" and key.rank <= len(QUESTION_WORDS)


def is_answer(name: str) -> bool:
    """Whether the value of a key should be an answer."""
    key = _key(name)
    return key is not None and key.field == "answer"


def is_choice(name: str) -> bool:
    """Whether the value of a key should say which option is right."""
    key = _key(name)
    return key is not None and key.field in {"correct", "index"}


def object_pairs(items: Items) -> Iterator[QAPair]:
    """The pairs among the members of one object, by the numbers of their keys.

    Of multiple choice, `correct` and `answer` are those of the right option; `correct` is empty if
    that is not clear. There is no pair if the object contradicts itself.
    """
    lettered = _lettered_options(items)
    if lettered:
        items = [item for item in items if _OPTION_NAME.fullmatch(item[0].strip()) is None]
    values: dict[str, dict[str, tuple[int, object]]] = {}
    for name, value in items:
        key = _key(name)
        if key is not None and (text_of(value) or key.field in {"options", "correct", "answer"}):
            known = values.setdefault(key.field, {})
            rank = key.rank if text_of(value) else len(_FIELDS)
            if key.number not in known or rank < known[key.number][0]:
                known[key.number] = (rank, value)
    questions = values.get("question", {})
    for number in questions:
        members = {
            field: (known.get(number) or (known.get("") if len(questions) == 1 else None))
            for field, known in values.items()
        }
        yield from _pair({field: value[1] for field, value in members.items() if value}, lettered)


def _pair(members: Mapping[str, object], lettered: Mapping[str, str]) -> Iterator[QAPair]:
    question = text_of(members["question"])
    if not question:
        return
    extras = named((field, text_of(members.get(field))) for field in FIELDS if field in members)
    options = lettered or _options(members.get("options"))
    if options is None:
        return
    said = [text for field in ("answer", "correct", "index") if (text := _said(members.get(field)))]
    if not options:
        if answer := text_of(members.get("answer")) or _said(members.get("correct")):
            yield QAPair(question, answer, **extras)
        return
    texts = tuple(options.values())
    right = _right_options(members, options)
    if len(right) == 1:
        index = right.pop()
        yield QAPair(question, texts[index], **extras, options=texts, correct=LETTERS[index])
    elif said and not right:
        yield QAPair(question, said[0], **extras, options=texts)


def parallel_pairs(items: Items) -> list[QAPair]:
    """The pairs of `{"questions": [...], "answers": [...]}`, also those without one of the two."""
    members = {name.strip().casefold(): value for name, value in items}
    questions, answers = members.get("questions"), members.get("answers")
    if isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers):
        return [QAPair(text_of(q), text_of(a)) for q, a in zip(questions, answers, strict=True)]
    return []


def _lettered_options(items: Items) -> dict[str, str]:
    """The options of `{"A": "red", "B": "blue", "answer": "A"}` and `{"option_1": ...}`."""
    found = {
        name.strip()[-1].upper(): text_of(value)
        for name, value in items
        if _OPTION_NAME.fullmatch(name.strip()) and text_of(value)
    }
    is_list = {"A", "B"} <= found.keys() or {"1", "2"} <= found.keys()
    return dict(sorted(found.items())) if is_list else {}


def _options(value: object) -> dict[str, str] | None:
    """The options of a list, an object or a text: what stands before each -> its text.

    They are in the order of their letters. None if it is not clear which letter each has.
    """
    if isinstance(value, dict):
        members = {str(mark).strip(): text_of(text) for mark, text in value.items()}
        return _in_order(list(members), list(members.values())) if all(members.values()) else {}
    if isinstance(value, str):
        choices = split_options(f"?\n{value}", digits=True) or split_options(
            f"? {value}", digits=False
        )
        return dict(zip(LETTERS, choices.options, strict=False)) if choices else {}
    if not isinstance(value, list) or len(value) > len(LETTERS):
        return {}
    texts = [_option_text(option) for option in value]
    if not all(texts):
        return {}
    marks = [_option_mark(option) for option in value]
    if all(marks):
        return _in_order(marks, texts)
    # ["A. red", "B. blue"]
    labelled = split_options("?\n" + "\n".join(texts), digits=False)
    if labelled is not None and len(labelled.options) == len(texts):
        return dict(zip(LETTERS, labelled.options, strict=False))
    lettered = [match for text in texts if (match := _LETTERED.fullmatch(text))]
    if len(lettered) == len(texts):
        return _in_order([each["mark"] for each in lettered], [each["text"] for each in lettered])
    return dict(zip(LETTERS, texts, strict=False))


def _in_order(marks: Sequence[str], texts: Sequence[str]) -> dict[str, str] | None:
    """Texts by their marks; None if the marks are letters, but not the first ones, each once."""
    if all(len(mark) == 1 and mark.isascii() and mark.isalpha() for mark in marks):
        ordered = dict(sorted(zip(map(str.upper, marks), texts, strict=True)))
        is_clear = "".join(ordered) == LETTERS[: len(texts)]
        return ordered if is_clear else None
    if len(set(marks)) < len(marks):
        return None
    pairs = list(zip(marks, texts, strict=True))
    is_numbered = all(mark.isdecimal() and len(mark) < 3 for mark in marks)
    return dict(sorted(pairs, key=lambda pair: int(pair[0])) if is_numbered else pairs)


def _option_mark(option: object) -> str:
    """The letter or digit of an option that is an object; empty if it has none."""
    if not isinstance(option, dict):
        return ""
    names = ("label", "letter", "id", "key")
    marks = (text_of(option.get(name)).rstrip(".):") for name in names)
    return next((mark for mark in marks if len(mark) == 1 and mark.isalnum()), "")


def _option_text(option: object) -> str:
    if isinstance(option, dict):
        names = ("text", "option", "value", "content", "answer", "description", "选项")
        return next(filter(None, (text_of(option.get(name)) for name in names)), "")
    return text_of(option)


def _right_options(members: Mapping[str, object], options: Mapping[str, str]) -> set[int]:
    """Positions of the options that are said to be right: several if that is contradictory."""
    texts = list(options.values())
    if options_fault(texts):
        return set()
    found = {_position(members.get("index"), texts)}
    for field in ("index", "correct", "answer"):
        said = _said(members.get(field))
        if said and not (field == "index" and said.isdecimal()):
            choice = choice_in(said, texts, list(options))
            found.add(None if choice is None else choice.index)
    ticked = [n for n, option in enumerate(_listed(members.get("options"))) if _is_ticked(option)]
    found.update(ticked)
    return {index for index in found if index is not None}


def _position(index: object, texts: Sequence[str]) -> int | None:
    """An index among the options, from 0."""
    if isinstance(index, str) and index.isdecimal() and int(index[:4]) < len(texts):
        return int(index[:4])
    return None


def _said(value: object) -> str:
    """The text, number or letter that says which option is right."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        names = ("letter", "label", "key", "option", "text", "value")
        return next(filter(None, (text_of(value.get(name)) for name in names)), "")
    return "" if isinstance(value, bool) else text_of(value)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _is_ticked(option: object) -> bool:
    names = ("correct", "is_correct", "isCorrect", "right")
    return isinstance(option, dict) and any(option.get(name) is True for name in names)


def text_of(value: object) -> str:
    """A string, number or boolean as text; "" for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return trim(value) if isinstance(value, str) else ""
