"""Training prompts, from a plain request to a long, odd one.

The form of the reply must depend only on the request, wherever it is in the prompt. So requests are
kept legible, and the text around them varies wildly.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from . import phrases


class Form(StrEnum):
    """The requested form of the reply."""

    PAIR = "pair"
    JSON = "json"
    MANY = "many"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Instruction:
    """A system prompt ("" for none) and the text of the user's turn."""

    system: str
    user: str


_SYSTEM = {
    Form.PAIR: phrases.SYSTEM_PAIR,
    Form.JSON: phrases.SYSTEM_JSON,
    Form.MANY: phrases.SYSTEM_MANY,
    Form.ANSWER: phrases.SYSTEM_ANSWER,
}
_USER = {
    Form.PAIR: phrases.USER_PAIR + phrases.USER_ONE_PAIR,
    Form.JSON: phrases.USER_JSON,
    Form.MANY: phrases.USER_MANY,
}
_ODD = 0.33  # share of system prompts with distracting text around the request
_MAX_FILLER_CHARACTERS = 600  # about 100 words


def instruct(form: Form, rng: random.Random, count: int = 1) -> Instruction:
    """Compose a prompt that asks for a form.

    Args:
        form: the form; for ANSWER the user's turn is "", to be replaced by the question.
        rng: source of randomness.
        count: number of pairs to ask for; only used for MANY.
    """
    if form is Form.ANSWER:
        return Instruction(surround(_answer_request(rng), rng), "")
    number = rng.choice(phrases.NUMBERS[count]) if form is Form.MANY else ""
    place = rng.random()
    if place < 0.6:  # the system prompt has the request, the user's turn is neutral
        system, user = _pick(_SYSTEM[form], rng), _pick(phrases.USER_PAIR, rng)
        if place < 0.06:
            user = ""
    elif place < 0.9:  # the user's turn has the request
        system, user = _pick(_SYSTEM[Form.PAIR], rng), _pick(_USER[form], rng)
        if place < 0.75:
            system = rng.choice(("", phrases.SYSTEM_ANSWER[0]))
    else:  # both have it
        system, user = _pick(_SYSTEM[form], rng), _pick(_USER[form], rng)
    system, user = (text.replace("{n}", number) for text in (system, user))
    if form is Form.PAIR and rng.random() < 0.15:  # other forms depend on single words: no typos
        system, user = _garble(system, rng), _garble(user, rng)
    if user and rng.random() < 0.08:
        user = rng.choice((f"{user} {_rule(rng)}", f"{_rule(rng)} {user}"))
    return Instruction(surround(system, rng), _recase(user, rng))


def _answer_request(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return ""
    if draw < 0.42:  # a question must be answered even with a generator's system prompt
        return _pick(phrases.SYSTEM_PAIR, rng)
    return _pick(phrases.SYSTEM_ANSWER, rng)


def _pick(texts: tuple[str, ...], rng: random.Random) -> str:
    """Choose a text; the first, which is the default of most tools, is the most frequent."""
    return texts[0] if rng.random() < 0.25 else rng.choice(texts)


def surround(request: str, rng: random.Random) -> str:
    """Put personas, rules and junk around a request, and sometimes change the case."""
    if rng.random() >= _ODD:
        return _recase(request, rng)
    around = [_filler(rng) for _ in range(rng.randint(1, rng.choice((3, 6, 12))))]
    while sum(map(len, around)) > _MAX_FILLER_CHARACTERS:
        around.pop()
    if rng.random() < 0.3:
        around = [_garble(text, rng) for text in around]
    parts = [request] if request else []
    place = rng.choice((0, len(around), rng.randint(0, len(around))))
    parts = around[:place] + parts + around[place:]
    separator = rng.choice((" ", " ", " ", "\n", "\n\n", "\n- ", " | "))
    return _recase(separator.join(parts), rng)


def _filler(rng: random.Random) -> str:
    kinds: tuple[Callable[[random.Random], str], ...] = (
        _persona,
        _rule,
        _rule,
        _rule,
        _words,
        _junk,
    )
    return rng.choice(kinds)(rng)


def _persona(rng: random.Random) -> str:
    return _fill(rng.choice(phrases.PERSONAS), rng)


def _rule(rng: random.Random) -> str:
    return _fill(rng.choice(phrases.RULES), rng)


def _fill(text: str, rng: random.Random) -> str:
    return (
        text.replace("{d}", str(rng.randint(1, rng.choice((9, 99, 2000)))))
        .replace("{n}", rng.choice(rng.choice(list(phrases.NUMBERS.values()))))
        .replace("{name}", rng.choice(phrases.NAMES))
        .replace("{w}", rng.choice(phrases.WORDS).title())
    )


def _words(rng: random.Random) -> str:
    words = rng.choices(phrases.WORDS, k=rng.randint(3, 20))
    return " ".join(words).capitalize() + rng.choice((".", "!", ":", ";", "?", ""))


def _junk(rng: random.Random) -> str:
    """Made-up words, symbols or characters of any script."""
    length = rng.randint(3, 30)
    draw = rng.random()
    if draw < 0.5:
        letters = "abcdefghijklmnopqrstuvwxyz" * 3 + "aeiou" * 8 + " " * 20
        return "".join(rng.choices(letters, k=length)).strip() or "x"
    if draw < 0.7:
        return "".join(rng.choices("0123456789#*=_-/\\{}[]()<>:;,.!?'\"~^$%&@+ ", k=length))
    if draw < 0.85:
        return "".join(rng.choices(phrases.CHINESE, k=length // 2 + 1))
    return "".join(chr(rng.randint(0xA1, 0x2FFF)) for _ in range(length // 3 + 1))


def _garble(text: str, rng: random.Random) -> str:
    """Drop words and letters and swap neighbouring letters."""
    words = [word for word in text.split(" ") if rng.random() > 0.1]
    return " ".join(_typo(word, rng) if rng.random() < 0.15 else word for word in words) or text


def _typo(word: str, rng: random.Random) -> str:
    if len(word) < 3:
        return word
    at = rng.randrange(len(word) - 1)
    if rng.random() < 0.5:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _recase(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.05:
        return text.upper()
    if draw < 0.12:
        return text.lower()
    return text.rstrip(".") if draw < 0.17 else text
