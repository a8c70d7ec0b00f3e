# ruff: noqa: RUF001 (letters of several scripts)
"""Whether a text is surely in another language than the one asked for.

A language with a script of its own is told by its letters, the others by their commonest words.
Both say something of a few languages only, and only of what is clear: a text that could be in the
language is taken to be.
"""

import re
from collections import Counter
from functools import lru_cache

from .question_faults import QUOTED

_LATIN = r"A-Za-z\u00aa-\u024f\u1e00-\u1eff"
_SCRIPTS = {
    "zh": r"\u3400-\u9fff\uf900-\ufaff",
    "ja": r"\u3040-\u30ff\u3400-\u9fff",
    "ko": r"\u1100-\u11ff\uac00-\ud7af",
    "ru": r"\u0400-\u04ff",
    "uk": r"\u0400-\u04ff",
    "bg": r"\u0400-\u04ff",
    "el": r"\u0370-\u03ff\u1f00-\u1fff",
    "ar": r"\u0600-\u06ff",
    "fa": r"\u0600-\u06ff",
    "ur": r"\u0600-\u06ff",
    "he": r"\u0590-\u05ff",
    "hi": r"\u0900-\u097f",
    "bn": r"\u0980-\u09ff",
    "ta": r"\u0b80-\u0bff",
    "te": r"\u0c00-\u0c7f",
    "th": r"\u0e00-\u0e7f",
}
_WORDS = {
    "en": "the is are what which how many there of and does where who with this that why it in on",
    "de": "der die das ist sind was wie viele welche welcher wo und nicht ein eine im auf mit von",
    "fr": "le la les est sont quel quelle combien où qui que dans et une des du sur avec il pas",
    "es": "el la los las es son qué cuál cuántos cuántas dónde en y una del con hay está color",
    "pt": "o os as é são qual quantos quantas onde em e uma do da no na com há que está cor",
    "it": "il lo gli è sono quale quanti quante dove che nel nella una di della con colore ci",
    "nl": "de het is zijn wat welke hoeveel waar een en op met van niet kleur",
    "pl": "jest są jaki jaka ile gdzie kto co w na z i nie kolor",
    "tr": "ne kaç nerede hangi bir ve bu mi mı var renk",
    "id": "apa berapa di mana yang dan ini itu adalah warna ada",
    "vi": "gì nào bao nhiêu ở đâu là và có màu trong",
    "sv": "är vad hur många var vilken och en ett på med den det färg",
}
_NAMES = {
    name: code
    for code, names in {
        "en": "english eng",
        "de": "german deutsch deu ger",
        "fr": "french français francais fra fre",
        "es": "spanish español espanol castellano spa",
        "pt": "portuguese português portugues por",
        "it": "italian italiano ita",
        "nl": "dutch nederlands nld",
        "pl": "polish polski pol",
        "tr": "turkish türkçe turkce tur",
        "id": "indonesian bahasa indonesia ind",
        "vi": "vietnamese việt vie",
        "sv": "swedish svenska swe",
        "zh": "chinese mandarin 中文 汉语 漢語 简体中文 繁體中文 普通话 zho chi",
        "ja": "japanese 日本語 jpn",
        "ko": "korean 한국어 kor",
        "ru": "russian русский rus",
        "uk": "ukrainian українська ukr",
        "bg": "bulgarian български bul",
        "el": "greek ελληνικά ell",
        "ar": "arabic العربية ara",
        "fa": "persian farsi فارسی fas",
        "ur": "urdu اردو urd",
        "he": "hebrew עברית heb",
        "hi": "hindi हिन्दी हिंदी hin",
        "bn": "bengali bangla বাংলা ben",
        "ta": "tamil தமிழ் tam",
        "te": "telugu తెలుగు tel",
        "th": "thai ไทย ภาษาไทย tha",
    }.items()
    for name in (code, *names.split())
}
_KNOWN = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_USES = Counter(word for words in _KNOWN.values() for word in words)
_OF = {word: code for code, words in _KNOWN.items() for word in words if _USES[word] == 1}
"""Words that only one of the languages has -> that one."""

_LETTERS = {code: re.compile(f"[{letters}]") for code, letters in _SCRIPTS.items()}
_LATIN_LETTER = re.compile(f"[{_LATIN}]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_LETTER = re.compile(r"[^\W\d_]")
_MIN_LETTERS = 8
"""Of a text whose script is judged."""

_FOREIGN = 0.7
"""Share of letters of other scripts from which a text is not in a language of Latin letters."""


def is_other_language(text: str, language: str, hits: int = 2) -> bool:
    """Whether a text is surely not in a language.

    What it quotes does not count.

    Args:
        text: a question or an answer.
        language: its name in English or in itself, or its code, such as "pt-BR"; about a language
            that is not known, nothing is said.
        hits: how many different words of another language make it one of that.
    """
    code = _code(language[:60])
    if not code:
        return False
    text = QUOTED.sub(" ", text)
    letters = len(_LETTER.findall(text))
    if code in _LETTERS:
        of_script = len(_LETTERS[code].findall(text))
        if letters >= _MIN_LETTERS and not of_script:
            return True
        return code == "ja" and of_script >= _MIN_LETTERS and not _KANA.search(text)
    if letters >= _MIN_LETTERS:
        latin = len(_LATIN_LETTER.findall(text))
        if letters - latin > _FOREIGN * letters:
            return True
    words = {word.strip(".,;:!?¿¡()") for word in text.casefold().split()}
    if not words.isdisjoint(_KNOWN[code]):
        return False
    others = Counter(_OF[word] for word in words if word in _OF)
    return max(others.values(), default=0) >= hits


@lru_cache(maxsize=256)
def _code(language: str) -> str:
    """The code of a language; empty if it is not known, or if several are named."""
    names = [name for name in re.split(r"[^\w]+|_", language.casefold()) if name]
    if names and names[0] in _NAMES and len(names[0]) <= 3:
        return _NAMES[names[0]]  # "pt-BR", "zh_CN"
    codes = {_NAMES[name] for name in names if name in _NAMES and len(name) > 2}
    return codes.pop() if len(codes) == 1 else ""
