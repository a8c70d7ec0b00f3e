"""Whether two answers to the same question say the same.

A comparison of words, without a model. It knows case, articles, punctuation, numbers and number
words, units, yes and no, and short answers within sentences. It does not know synonyms ("bike" and
"bicycle"), conversions ("100 cm" and "1 m"), or long answers in other words: those do not agree.
"""

from collections.abc import Sequence

from ..parsing.choices import LETTERS, choice_in, normal
from .answer_words import NEGATIONS, Said, said
from .declining import is_denial, is_refusal, is_unsure

LONGEST = 1000
"""Characters of an answer; a longer one agrees only with one that is the same but for case, white
space and punctuation at its ends. Of one that chooses among options, so many count."""

_MAX_OPTIONS = len(LETTERS)


def agree(
    a: str, b: str, *, options: Sequence[str] = (), correct: str = "", question: str = ""
) -> bool:
    """Whether two answers say the same; an empty one agrees with none.

    A short answer agrees with a sentence that says it ("red" with "The cube is red."), unless the
    sentence denies it ("not red"), or also says something else of its kind ("red and blue"; "3"
    with "3 dogs and 2 cats"). Lists agree in any order. Of two with "yes" or "no", this word
    decides, unless what else they say excludes one another ("Yes, two" and "Yes, three").

    Args:
        a: an answer, such as that of the pair.
        b: another one.
        options: of multiple choice, in the order in which both were asked: letters of options, such
            as "B" or "The answer is (b)", stand for their texts.
        correct: the letter that `a` stands for, if it is known.
        question: what was asked, if it is known: a colour or number that it names itself is not
            something else that an answer says.
    """
    a, b = a.strip(), b.strip()
    if not a or not b:
        return False
    if options:
        options = [option[:LONGEST] for option in options[:_MAX_OPTIONS]]
        return _same_choice(a[:LONGEST], b[:LONGEST], options, correct.strip().upper())
    return _same(a, b, question)


def _same(a: str, b: str, question: str) -> bool:
    if a == b:
        return True
    if max(len(a), len(b)) > LONGEST:
        return normal(a) == normal(b)
    one, other = said(a), said(b)
    if one.words and one.verdict == other.verdict and _is_begun(one, other):
        return True
    if one.verdict and other.verdict:
        if one.verdict != other.verdict:
            return False
        return not one.count or not other.count or not _exclude(one, other)
    if one.verdict and not one.count:
        return _is_no(one, other, b)
    if other.verdict and not other.count:
        return _is_no(other, one, a)
    short, long = (one, other) if one.count <= other.count else (other, one)
    if _says(long, short, question):
        return True
    return _declines(one, a) and _declines(other, b) and not _exclude(one, other)


def _is_no(verdict: Said, other: Said, text: str) -> bool:
    """Whether a sentence without "yes" and "no" says no, as the other answer does."""
    denials = NEGATIONS - {"without"}
    denied = any(not denials.isdisjoint(clause.split()) for clause in other.denied)
    return verdict.verdict == "no" and denied and not is_unsure(text)


def _is_begun(one: Said, other: Said) -> bool:
    """Whether one is the other with more sentences."""
    return one.words in {other.first, other.words} or other.words == one.first


_UNSAID = frozenset(("not", "unanswerable", "unknown", "unclear", "impossible"))


def _declines(answer: Said, text: str) -> bool:
    """Whether an answer is that the image does not show what was asked."""
    if not answer.denied or _UNSAID.isdisjoint(answer.words.split()):
        return False  # "There is no circle" is another answer
    return answer.words in _UNSAID or is_denial(text) or is_refusal(text)


def _exclude(one: Said, other: Said) -> bool:
    """Whether two answers name different colours, numbers or the like."""
    for category, words in one.categories.items():
        others = other.categories.get(category)
        if others and not (words <= others or others <= words):
            return True
    return False


def _says(long: Said, short: Said, question: str) -> bool:
    """Whether a longer answer says what a shorter one does, and nothing else of its kind."""
    parts = short.affirmed or short.denied
    clauses = long.affirmed if short.affirmed else long.denied
    if not parts or not clauses:
        return False
    if short.is_list and long.is_list:
        return _same_items(parts, clauses)
    if not all(any(part in clause for clause in clauses) for part in parts):
        return False
    if long.is_list and not _is_categorical(short):
        return False  # "a cat" is not all of "a cat and a dog"
    asked = said(question[:LONGEST]).categories if question else {}
    for category, words in short.categories.items():
        more = long.categories.get(category, frozenset()) - words - asked.get(category, frozenset())
        if more - {"1", "0"}:  # "the left one", "no cats"
            return False
    return True


def _same_items(fewer_words: Sequence[str], items: Sequence[str]) -> bool:
    """Whether each item of a list is within one of the other list, and all of those are used."""
    left = list(items)
    for part in sorted(fewer_words, key=len, reverse=True):
        place = next((place for place, item in enumerate(left) if part in item), None)
        if place is None:
            return False
        left.pop(place)
    return not left


def _is_categorical(answer: Said) -> bool:
    """Whether it is nothing but a colour, a number or the like."""
    return answer.count == sum(map(len, answer.categories.values()))


def _same_choice(a: str, b: str, options: Sequence[str], correct: str) -> bool:
    one, other = _chosen(a, options, correct), _chosen(b, options)
    if one is not None and other is not None:
        return one == other or normal(options[one]) == normal(options[other])
    a = a if one is None else options[one]
    b = b if other is None else options[other]
    if normal(a) == normal(b):
        return True
    one = _named(a, options) if one is None else one
    other = _named(b, options) if other is None else other
    if one is None and other is None:
        return _same(a, b, "")
    return one == other


def _chosen(answer: str, options: Sequence[str], correct: str = "") -> int | None:
    """Which option an answer is, by its letter or its text; None if that is not certain."""
    if correct and correct in LETTERS[: len(options)]:
        place = LETTERS.index(correct)
        if answer.upper() == correct or normal(answer) == normal(options[place]):
            return place
    choice = choice_in(answer, options)
    return None if choice is None else choice.index


def _named(answer: str, options: Sequence[str]) -> int | None:
    """Which option a sentence says: of several, the one whose words include those of the others."""
    found = [place for place, option in enumerate(options) if _same(option, answer, "")]
    found.sort(key=lambda place: said(options[place]).count)
    if not found:
        return None
    *fewer, last = found
    words = f" {said(options[last]).words} "
    within = (f" {said(options[place]).words} " in words for place in fewer)
    return last if all(within) else None
