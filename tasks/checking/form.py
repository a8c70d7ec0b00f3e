"""The check `form`: whether a pair looks like one, whatever it says.

It finds questions that are none, are cut, or are two; refusals; leaked text of prompts and chat
templates; answers that the question gives away or that repeat it; options that repeat; and text in
another language than the one asked for. It costs no request. What is doubtful passes: a good pair
should hardly ever be marked.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa

from ...serving.printable import printable
from ..parsing.choices import LETTERS
from ..records import QAPair
from .answer_words import CATEGORY_OF, DROPPED, said
from .check import CheckedPair, ComputedCheck, Values
from .control_text import control_text_in, placeholder_in, prompt_text_in
from .languages import is_other_language
from .question_faults import QUOTED, YES_NO_WORDS, asks_nothing, cut_at, second_question
from .refusals import refusal_in
from .texts import normal_form

NAME = "form"

COLUMNS = (pa.field(NAME, pa.string()), pa.field(f"{NAME}_detail", pa.string()))
"""The name of the first problem, or "" if there is none; and where it is."""

LONGEST_QUESTION = 2000
LONGEST_ANSWER = 8000
"""Characters; of an option, too."""

_SHORT_WORDS = 15
"""Words of an answer in the style `short`, which asks for one to three."""

_GIVEN_AWAY_WORDS = 6
"""Words of an answer that is looked for in the question."""


def check() -> ComputedCheck:
    """The check."""
    return ComputedCheck(NAME, COLUMNS, _judge)


def _judge(pairs: Callable[[], Iterable[CheckedPair]]) -> Iterator[Values]:
    return (problem_of(checked.pair) for checked in pairs())


def problem_of(pair: QAPair) -> tuple[str, str]:
    """The name of the first problem of a pair, and one short line about it; twice "" if none."""
    for name, find in _PROBLEMS:
        if detail := find(pair):
            return name, printable(detail, 100)
    return "", ""


def _texts(pair: QAPair) -> Sequence[str]:
    return (pair.question, pair.answer, *pair.options)


def _length(pair: QAPair) -> str:
    if len(pair.question) > LONGEST_QUESTION:
        return f"a question of {len(pair.question)} characters"
    longest = max(map(len, (pair.answer, *pair.options)))
    if longest > LONGEST_ANSWER or len(pair.options) > len(LETTERS):
        return f"an answer of {longest} characters, {len(pair.options)} options"
    if pair.type == "short" and not pair.options:
        words = len(pair.answer.split())
        return f"a short answer of {words} words" if words > _SHORT_WORDS else ""
    return ""


def _no_answer(pair: QAPair) -> str:
    return "the answer is empty" if pair.answer.strip() in {"", "...", "…"} else ""


def _control_text(pair: QAPair) -> str:
    return control_text_in("\n".join(_texts(pair)))


def _prompt_text(pair: QAPair) -> str:
    return prompt_text_in(pair.question, pair.answer)


def _placeholder(pair: QAPair) -> str:
    return placeholder_in(pair.question, pair.answer, pair.options)


def _refusal(pair: QAPair) -> str:
    if found := refusal_in(pair.answer):
        return found
    # "What", "how", "is": as most questions begin.
    return "" if pair.question[:2].casefold() in {"wh", "ho", "is"} else refusal_in(pair.question)


def _no_question(pair: QAPair) -> str:
    return pair.question if asks_nothing(pair.question, is_choice=bool(pair.options)) else ""


def _cut_question(pair: QAPair) -> str:
    return cut_at(pair.question, is_choice=bool(pair.options))


def _two_questions(pair: QAPair) -> str:
    return second_question(pair.question)


def _options(pair: QAPair) -> str:
    """An option that repeats: what differs in case only may be two units, such as "mW" and "MW"."""
    if not pair.options:
        return ""
    if len(pair.options) == 1:
        return "a single option"
    seen: set[str] = set()
    for option in pair.options:
        text = " ".join(option.split()).rstrip(".")
        text = text.casefold() if len(text) > 4 else text
        if text in seen:
            return f"twice: {option[:60]}"
        seen.add(text)
    return ""


def _wrong_letter(pair: QAPair) -> str:
    """An answer that is none of the options, or not the one with the letter."""
    if not pair.options:
        return ""
    answer = normal_form(pair.answer)
    if not pair.correct:
        is_one = any(normal_form(option) == answer for option in pair.options)
        return "" if is_one else "the answer is none of the options"
    place = LETTERS.find(pair.correct) if len(pair.correct) == 1 else -1
    if not 0 <= place < len(pair.options):
        return f"there is no option {pair.correct[:20]}"
    if normal_form(pair.options[place]) == answer or pair.answer.strip() == pair.correct:
        return ""
    return f"{pair.correct} is {pair.options[place][:40]}, the answer {pair.answer[:40]}"


def _repeats_question(pair: QAPair) -> str:
    if pair.answer[:3].casefold() != pair.question[:3].casefold():
        return ""  # as nearly all
    question, answer = normal_form(pair.question), normal_form(pair.answer)
    is_long = len(question.split()) > 2 or len(question) > 8
    if question == answer or (is_long and answer.startswith(question)):
        return pair.answer
    return ""


_ASKS_FOR_ONE = re.compile(r"\b(?:or|between|among|than|versus|vs)\b|[,:;\n]", re.IGNORECASE)
_LISTED = re.compile(r"(?<!\w)[a-h1-9]\)", re.IGNORECASE)
_RELATIONS = frozenset(
    {"in", "on", "next", "near", "with", "which", "who", "under", "behind", "above", "below", "by"}
    | {"left", "right", "front", "beside", "between", "from", "inside", "around", "against", "top"}
)


def _answer_in_question(pair: QAPair) -> str:
    """An answer that one can read off the question: "What colour is the red bus?".

    Not those that choose between what the question names, or say yes or no; not numbers and single
    letters, which are there by chance; and nothing that is said of something else ("What colour is
    the car next to the red bus?").
    """
    if pair.options:
        return ""
    question = f" {pair.question.casefold()}"
    words = _plain_words(pair.answer)
    if not words or any(f" {word}" not in question for word in words):
        return ""  # as nearly all
    first = question.split(maxsplit=1)[0].strip("\"'*_¿")
    if first in YES_NO_WORDS or _LISTED.search(pair.question):
        return ""
    if _ASKS_FOR_ONE.search(QUOTED.sub(" ", pair.question)):
        return ""
    answer = said(pair.answer)
    if not 0 < answer.count <= _GIVEN_AWAY_WORDS or answer.verdict or answer.denied:
        return ""
    asked = said(pair.question).words.split()
    given = _given_away(answer.words.split(), asked)
    if all(len(word) < 2 or not word.isalpha() for word in given):
        return ""
    return f"{' '.join(given)} is in the question"


def _given_away(answer: Sequence[str], question: Sequence[str]) -> Sequence[str]:
    """The words of an answer that the question says of what it asks about; else none."""
    if not set(answer) <= set(question):
        return ()
    places = [n for n in range(len(question)) if question[n : n + len(answer)] == answer]
    if not places:  # "The circle is red." of "the red circle"
        answer = [word for word in answer if word in CATEGORY_OF][-1:]
        places = [n for n in range(len(question)) if question[n : n + 1] == answer]
    if not answer or not places:
        return ()
    before, after = question[: places[0]], question[places[0] + len(answer) :]
    if not before or not _RELATIONS.isdisjoint(before):
        return ()
    is_noun = answer[0] in CATEGORY_OF and (not after or after[0] in _RELATIONS)
    return () if is_noun else answer  # "What colour is the orange?"


def _plain_words(answer: str) -> Sequence[str]:
    """The first words of an answer that count, as they are written."""
    words = (word.strip(".,;:!?\"'*_()") for word in answer[:200].casefold().split())
    return [word for word in words if word and word not in DROPPED]


def _language(pair: QAPair) -> str:
    if not pair.language:
        return ""
    if is_other_language(pair.question, pair.language):
        return f"not {pair.language[:40]}: {pair.question}"
    # An answer may be a name, or be read from a sign.
    if is_other_language(pair.answer, pair.language, hits=4) and len(pair.answer.split()) > 6:
        return f"not {pair.language[:40]}: {pair.answer}"
    return ""


_PROBLEMS: Sequence[tuple[str, Callable[[QAPair], str]]] = (
    ("too_long", _length),  # first: the others may look at the whole text
    ("no_answer", _no_answer),
    ("control_text", _control_text),
    ("prompt_text", _prompt_text),
    ("placeholder", _placeholder),
    ("refusal", _refusal),
    ("no_question", _no_question),
    ("cut_question", _cut_question),
    ("two_questions", _two_questions),
    ("options", _options),
    ("wrong_letter", _wrong_letter),
    ("repeats_question", _repeats_question),
    ("answer_in_question", _answer_in_question),
    ("language", _language),
)
"""What can be wrong with a pair, by name; each gives a line about it, or "" if it is not."""

PROBLEMS = tuple(name for name, _ in _PROBLEMS)
