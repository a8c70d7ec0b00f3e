# ruff: noqa: RUF001 (punctuation and words of several languages)
"""The words of an answer that count when it is compared with another one.

English is known best: number words, plurals, units, spellings. Of other languages, only yes and no,
and the characters of Chinese and Japanese one by one.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .number_words import NUMBER_WORDS, plain_number, with_digits


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEGATIONS = _set(
    "not no 0 never nothing nobody nowhere neither nor without 不 没 沒 非 无 無 ない ません nicht "
    "kein keine keinen pas aucun aucune нет не não nunca non nessun nessuna niet geen inte ikke "
    "nie δεν όχι değil không tidak bukan नहीं ليس ليست لا unanswerable unknown unclear impossible"
)

_CATEGORIES: Mapping[str, str] = {
    "colour": "red green blue yellow purple pink cyan black white gray brown orange violet beige "
    "gold silver tan maroon navy teal magenta turquoise",
    "place": "left right top bottom center above below under behind",
    "size": "small big medium tiny",
    "shape": "circle square triangle star rectangle cube sphere cylinder",
    "half of the day": "am pm",
}
CATEGORY_OF = {word: name for name, words in _CATEGORIES.items() for word in words.split()}
"""Words that exclude one another: an answer with two colours is not the one with one of them."""

_DIRECTIONS = frozenset(_CATEGORIES["place"].split())
_AREAS = _set("side corner part area portion half edge hand")

DROPPED = _set(
    "a an the is are was were be been being it its they them there this that these those he she "
    "his her their i you we at to of as has have had do does did could would "
    "answer image picture photo photograph photography shows showing depicts "
    "depicting displays contains appears seems probably likely just only also so"
)


def _canonical(lines: str) -> dict[str, str]:
    """Word -> the one that stands for it, which is the first in its line."""
    words = [line.split() for line in lines.strip().split("\n")]
    return {spelling: first for first, *spellings in words for spelling in spellings}


_SPELLINGS = _canonical("""
    gray grey
    center centre middle
    color colour
    theater theatre
    top upper
    bottom lower
    big large
    0 none no
    not cannot
    show shown
    woman women
    man men
    person people
    child children
    foot feet
    tooth teeth
    mouse mice
    percent % percentage
    1st first
    3rd third
    4th fourth
    5th fifth
    6th sixth
    dollar $
    euro €
    pound £
    yen ¥
    rupee ₹
    degree °
    & and & und et y 和 与 與 及
    , , 、 ، / or but oder ou 或
    . . ; ! ? 。 । ؟ ؛
""") | {"\n": "."}
_UNITS = _canonical("""
    meter m metre
    centimeter cm centimetre
    millimeter mm millimetre
    kilometer km kilometre
    inch in
    foot ft
    kilogram kg kilo
    gram g
    milligram mg
    pound lb lbs
    ounce oz
    liter l litre
    milliliter ml millilitre
    second s sec
    minute min
    hour h hr
    year yr yo
    dollar usd
    euro eur
    kph kmh
    celsius c
    fahrenheit f
""")
"""Short for a unit after a number; anywhere else, "in" and "s" are words."""

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W\d_{_CJK}]"
_MARKS = (  # vowels and the like, which are no letters to `re`
    r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u109f\u1780-\u17d3\u200c\u200d"
)

_TOKEN = re.compile(
    rf"""
    [a-z]\.(?:\ ?[a-z]\.)++(?:[a-z](?![a-z]))?+                       # a.m., U.S.A, J. K.
  | (?:(?<![\w.,])[-−])?+ (?:\d++(?:[.,:/]\d++)*+ | \.\d++) (?:'?{_LETTER}++)?+
  | ない|ません|[{_CJK}]
  | {_LETTER}(?:[^\W_{_CJK}]|[{_MARKS}])*+(?:'{_LETTER}++|[+\#]{{1,2}})?+   # C++
  | [.,;!?\n、。।،؛؟&/%°$€£¥₹]
    """,
    re.VERBOSE,
)
_MONEY = re.compile(r"([$€£¥₹])[^\S\n]?(\d[\d.,]{0,20}(?: (?:thousand|[mbtr]{1,2}illion)\b)?)")
_PER_HOUR = re.compile(r"\b(?:km|kilomet(?:er|re)s?|mi|miles?)(?:/hr?\b| (?:per|an) hour\b)")
_NUMBER = re.compile(rf"([-−]?[\d.,:/]++)'?({_LETTER}*+)")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")

_YES = re.compile(
    r"\W{0,5}(?:(?:yes|yeah|yep|oui|sí|sì|ja|jawohl|sim|da|да|نعم|हाँ|हां|ναι)(?![^\W_])"
    r"|はい|ええ|是的|네|예|(?:是|对|對)(?=\s*(?:$|[,，。.!！])))"
)
_NO = re.compile(
    r"\W{0,5}(?:(?:no|nope|non|nein|não|nee|nej|нет|لا|नहीं|όχι)"
    r"(?=\W*$|\s*[,.;:!،।—–-]|\s+(?:it|there|the|they|this|that|these|those|he|she)\b)"
    r"|いいえ|不是的?|아니요|아니오|否|(?:不|没有|沒有)(?=\s*(?:$|[,，。.!！])))"
)
_AT_LAST = re.compile(r"\b(?:so|is|but|answer:?)\s+(yes|no)(?=\s*(?:[.!]|$))")
_BEGIN_OTHERWISE = frozenset("abcefghiklmpqrtuvwxz0123456789")  # not with yes or no


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says.

    Attributes:
        verdict: "yes" or "no" if it begins or ends with it; else "".
        words: all words that count, in order, as one text.
        first: those of its first sentence.
        count: how many words.
        affirmed: its clauses without a negation: words between spaces, with one at either end.
        denied: its clauses with a negation.
        is_list: whether it is one sentence of several short parts, joined by commas or "and".
        categories: category -> its words in the affirmed clauses; if there are none, in the others.
    """

    verdict: str
    words: str
    first: str
    count: int
    affirmed: tuple[str, ...]
    denied: tuple[str, ...]
    is_list: bool
    categories: Mapping[str, frozenset[str]]


_LONG_PART = 5
"""Words of a part of a sentence; with more, it is no item of a list."""


@lru_cache(maxsize=1024)
def said(text: str) -> Said:
    """What an answer says; the time is linear in its length."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = _OTHER_DIGIT.sub(lambda digit: str(int(digit[0])), text)
    text = text.casefold().replace("’", "'").replace("⁄", "/")
    verdict, text = _verdict(text)
    if "/h" in text or " hour" in text:
        text = _PER_HOUR.sub(lambda unit: "kph" if unit[0][0] == "k" else "mph", text)
    if not text.isascii() or "$" in text:
        text = _MONEY.sub(r"\2 \1", text)
    tokens = _TOKEN.findall(text)
    words = [word for token in tokens for word in _counting(token)]
    if not NUMBER_WORDS.isdisjoint(words):
        words = with_digits(words)
    sentences = _sentences(words)
    if not sentences and not verdict:  # nothing but words that do not count: "The answer is A."
        last = next((token for token in reversed(tokens) if token.isalnum()), text.strip())
        sentences = [[[last]]] if last else []
    clauses = [clause for sentence in sentences for clause in sentence]
    flat = [word for clause in clauses for word in clause]
    denied = [clause for clause in clauses if not NEGATIONS.isdisjoint(clause)]
    affirmed = [clause for clause in clauses if NEGATIONS.isdisjoint(clause)]
    parts = affirmed or denied
    categories: dict[str, set[str]] = {}
    for word in (word for part in parts for word in part):
        category = "number" if word[0].isdecimal() or word[0] == "-" else CATEGORY_OF.get(word)
        if category:
            categories.setdefault(category, set()).add(word)
    return Said(
        verdict,
        " ".join(flat),
        " ".join(word for clause in sentences[0] for word in clause) if sentences else "",
        len(flat),
        tuple(f" {' '.join(clause)} " for clause in affirmed),
        tuple(f" {' '.join(clause)} " for clause in denied),
        len(sentences) == 1 < len(parts) and all(len(part) <= _LONG_PART for part in parts),
        {name: frozenset(found) for name, found in categories.items()},
    )


def _verdict(text: str) -> tuple[str, str]:
    """Yes or no, and the rest of the text."""
    if text[:1] not in _BEGIN_OTHERWISE:
        if found := _YES.match(text):
            return "yes", text[found.end() :]
        if found := _NO.match(text):
            return "no", text[found.end() :]
    if (" yes" in text or " no" in text) and (found := _AT_LAST.search(text)):
        return found[1], text[: found.start()] + text[found.end() :]
    return "", text


@lru_cache(maxsize=2048)
def _counting(token: str) -> tuple[str, ...]:
    """The words that a token stands for: none if it does not count."""
    if token in DROPPED:
        return ()
    if spelling := _SPELLINGS.get(token):
        return (spelling,)
    if number := _NUMBER.fullmatch(token):
        value, suffix = plain_number(number[1]), number[2]
        if not suffix:
            return (value,)
        if suffix == "s" and len(value) == 4:  # "1990s" are no seconds
            return (f"{value}s",)
        if suffix in {"am", "pm"} or suffix in _UNITS:
            return (value, _UNITS.get(suffix, suffix))
        return (value + suffix,)
    if "." in token and len(token) > 1:
        return (token.replace(".", "").replace(" ", ""),)
    if "'" in token:
        if token.endswith("n't"):
            return ("not",)
        token = token.partition("'")[0]
        return () if token in DROPPED else (_SPELLINGS.get(token, _singular(token)),)
    single = _singular(token)
    return (_SPELLINGS.get(single, single),)


def _singular(word: str) -> str:
    """An English noun in the singular, by rule; other words may lose an s, which does no harm."""
    if len(word) < 4 or word[-1] != "s" or word[-2] in "sui'":
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def _sentences(words: Sequence[str]) -> list[list[list[str]]]:
    """The sentences, of clauses, of words."""
    sentences: list[list[list[str]]] = []
    clauses: list[list[str]] = []
    clause: list[str] = []
    pending = ""
    for word in (*words, "."):
        if word in {".", ",", "&"}:
            if clause:
                clauses.append(clause)
                clause = []
            if word == "." and clauses:
                sentences.append(clauses)
                clauses = []
            pending = ""
            continue
        before = clause[-1] if clause else ""
        is_counted = before[:1].isdecimal() or (before == "degree" and word in {"c", "f"})
        if is_counted and word in _UNITS:
            clause.append(_UNITS[word])
        elif word in {"in", "on"}:
            pending = word
        elif word == "second" and not before[:1].isdecimal():
            clause.append("2nd")
        elif not (word in _AREAS and before in _DIRECTIONS) and (word != "am" or is_counted):
            # "On the left" and "in the left" are the same, "on the box" and "in the box" are not.
            if pending and word not in _DIRECTIONS:
                clause.append(pending)
            clause.append(word)
            pending = ""
    return sentences
