# ruff: noqa: RUF001 (punctuation of several languages)
"""What is wrong with the form of a question: it asks nothing, is cut, or asks two things.

Most of it is about English; of a question in another language, quotation marks, brackets and
question marks are looked at, and nothing else.
"""

import re

MARKS = "?？؟⁇"
_MARK = re.compile(rf"[{MARKS}]++[!{MARKS}]*+")

_WH = "what which who whom whose when where why how what's who's where's how's when's why's whats"
_AUXILIARIES = (
    "is are was were am do does did has have had can could will would shall should may might must "
    "isn't aren't wasn't weren't don't doesn't didn't hasn't haven't can't couldn't won't wouldn't"
)
_REQUESTS = (
    "please describe list name count identify explain compare estimate read give state tell "
    "summarize summarise discuss determine calculate locate find point write suggest caption "
    "transcribe translate provide generate answer look select choose pick fill complete solve "
    "convert extract compute predict classify detect segment recognize recognise highlight report "
    "return output use consider observe analyze analyse narrate show help let's let match label "
    "outline mention specify indicate infer guess imagine create draw detail elaborate comment "
    "rate rank order sort decide judge check verify say spell define evaluate interpret examine"
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


YES_NO_WORDS = _set(_AUXILIARIES)
_REQUESTED = _set(f"{_REQUESTS} be")
_ASKING = _REQUESTED | _set(f"{_WH} {_AUXILIARIES}")
_CLAUSE_START = re.compile(
    r"(?:^|[.,:;!\n(]|\b(?:and|then|or|if so|you))[\s\"'“‘*_(]*+([a-z]++(?:'[a-z]++)?+)"
)
_WITHIN = re.compile(
    r"\b(?:what|how|why|whose|true or false|yes or no|"
    r"(?:in|on|at|to|from|for|of|by|with|under|about|into|near|through|"
    r"during|until|since|towards?) (?:which|where|when|who|whom))\b"
)
_SUBJECTS = _set(
    "the a an this that these those there it he she they we i his her its their my our your both "
    "all some most many several each every no one two three four five six seven eight nine ten"
)
_VERBS = _set(
    "is are was were has have had shows show wears holds looks contains consists stands sits seems "
    "isn't aren't wasn't weren't can will does do it's there's"
)
_GAP = re.compile(r"_{2,}|\.{2,}|…|[:：]\s*$|\[\s*\]|\(\s*\)")
"""Where something is to be filled in, or given."""

_INNER = 300
"""Characters between quotation marks: bounds the search for the second one."""

QUOTED = re.compile(
    "|".join(
        rf"{start}[^{end}]{{0,{_INNER}}}+{end}"
        for start, end in ('""', "“”", "«»", "「」", "‘’", "``", (r"\(", r"\)"))
    )
    + rf"|(?<!\w)'[^']{{1,{_INNER}}}+'(?!\w)"
)
"""What a text quotes or has in brackets."""

_INCHES = re.compile(r"\d\s?\"")
_BAD_START = re.compile(r"[,;)\]}?!%]|[.:](?![\w.])")
_BAD_END = re.compile(
    # A Greek question ends with ;
    r"(?:[,–—]|(?<![\u0370-\u03ff\u1f00-\u1fff]);)\W*$|[(\[{][^\w)\]}]*$|\b(?:the|an|and|but|its|their|your|because|very)$"
    rf"|\b(?:the|an|and|their|your|its)\s?[{MARKS}]\W*$",
)
_TO_COMPLETE = re.compile(r"(?:complete|continue|finish|fill)\b", re.IGNORECASE)
_TWICE = re.compile(
    r"\b(the|is|are|of|an|and|to|what|how|does|many|colou?r|is the|are the|[^\W\d_]{6,30})\s++\1\b",
    re.IGNORECASE,
)
_GARBLED = re.compile(
    r"\b(?:What|How|Where|Which|When|Why)[A-Z]|\bthe (?:is|are|was|there|of|an|how|does)\b"
)
"""What no English has, such as "WhatIs it?" and "Where is the there?"."""

_STUCK = re.compile(r"\b([^\W\d_]++)(?:\s++\1\b){2}", re.IGNORECASE)
_FRAGMENT = re.compile(r"[\"'”’)*_]*+\s++([a-z]+(?:\s[a-z]+)?)[\s.]*+$")
_FINE_AFTER_MARK = frozenset(("please", "yes or", "or not", "and why", "and how", "thanks"))
_NO_NEW_QUESTION = _set("or a an yes no maybe right correct either both")
_FIRST_WORD = re.compile(r"[^\w]*+(\w++)")


def asks_nothing(question: str, *, is_choice: bool = False) -> bool:
    """Whether a text is no question and no request.

    Args:
        question: the text.
        is_choice: whether it has options, which may complete a sentence.
    """
    if not any(map(str.isalnum, question)) or question.strip().isdecimal():
        return True
    if _MARK.search(question) or is_choice or _GAP.search(question) or not question.isascii():
        return False
    text = question.casefold().strip()
    words = text.strip(" .!*_\"'").split()
    if words[0] not in _SUBJECTS or _VERBS.isdisjoint(words):
        return False  # a request may begin with any verb
    return not (_WITHIN.search(text) or _asks(text))


def _asks(text: str) -> bool:
    """Whether a later clause begins as a question or a request does."""
    return not _ASKING.isdisjoint(_CLAUSE_START.findall(text))


def cut_at(question: str, *, is_choice: bool = False) -> str:
    """What shows that the start or the end of a question is missing; empty if nothing does."""
    text = question.strip()
    if detail := _unpaired(text):
        return detail
    if start := _BAD_START.match(text):
        return f"starts with {start[0]}"
    own = QUOTED.sub(" ", text)
    if twice := _TWICE.search(own) or _STUCK.search(own):
        return f"repeats {twice[1][:40]}"
    if garbled := _GARBLED.search(own):
        return f"has {garbled[0]}"
    if is_choice:
        return ""
    end = _BAD_END.search(text.casefold(), max(0, len(text) - 40))
    if end and not _TO_COMPLETE.match(text):
        return f"ends with {end[0].strip()}"
    if text.endswith(("...", "…")) and not _MARK.search(text) and "__" not in text:
        return "ends with ..."
    marks = list(_MARK.finditer(text))
    rest = _FRAGMENT.match(text, marks[-1].end()) if marks else None
    if rest and rest[1] not in _FINE_AFTER_MARK and rest[1].split()[0] not in _REQUESTED:
        return f"goes on after its end: {rest[1][:40]}"
    return ""


def _unpaired(text: str) -> str:
    """A quotation mark or bracket without its counterpart."""
    double = sum(map(text.count, '"“”„'))  # „these" are a pair, too
    if double % 2 and (double - len(_INCHES.findall(text))) % 2:
        return 'has one " without the other'
    if text.startswith("'") and text[1:2].isalpha() and text.count("'") == 1:
        return "has one ' without the other"
    for marks in ("«»", "「」"):
        if sum(map(text.count, marks)) % 2:
            return f"has one {marks[0]} without the other"
    for mark in ("**", "`"):
        if (text.startswith(mark) or text.endswith(mark)) and text.count(mark) % 2:
            return f"has one {mark} without the other"
    opened = sum(map(text.count, "([")) - sum(map(text.count, ")]"))
    return "has an open bracket" if opened > 0 else ""


def second_question(question: str) -> str:
    """What a text asks after its first question; empty if it is a single one."""
    if len(_MARK.findall(question)) < 2:
        return ""
    asked = [part.strip() for part in _MARK.split(QUOTED.sub(" ", question))]
    for part in asked[1:-1]:
        first = _FIRST_WORD.match(part)
        if first and first[1].casefold() not in _NO_NEW_QUESTION:
            return part[:80]
    return ""
