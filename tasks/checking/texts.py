"""The normal form of a question, by which the same question in other words of courtesy is found.

A measure such as MinHash over characters cannot tell a rewording from another colour word. So
questions are the same only if their forms are equal.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

_ENDS = ".,;:!?。、।؟،؛"
"""After NFKC, which makes the usual ones of others, such as full-width ones."""

_QUOTES = "\"'“”„‘’«»‹›()[]{}*_`\\¿¡「」"  # noqa: RUF001

_IMAGE = (
    r"(?:the|this|that) (?:(?:provided|given|attached|above|shown|displayed|following) )?"
    r"(?:image|picture|photo|photograph|scene|illustration|drawing|snapshot|screenshot)"
)
"""Not a chart or a table: an image may have several."""

_SHOWN = r"shown|visible|seen|depicted|displayed|pictured|present|presented|illustrated|portrayed"

_LEAD_IN = re.compile(
    r"(?:please|kindly|question|tell me|let me know|do you know|i (?:want|would like) to know"
    r"|i'd like to know) "
    r"|(?:can|could|would|will) you (?:please |kindly )?"
    r"(?=(?:tell|say|identify|describe|list|name|explain|count|state|specify|find|determine) )"
    r"|(?:(?:based|only|solely)(?: solely| only)? on|according to|by looking at|looking at"
    r"|judging by|judging from|considering|given|with reference to|in reference to|referring to"
    rf"|as (?:{_SHOWN}) in|from|in|on|within|for) {_IMAGE}"
    r"(?: (?:provided|given|shown|above|below))? "
)

_TAIL = re.compile(
    rf"(?:(?: (?:that|which) (?:is|are|was|were|can be)(?: (?:{_SHOWN}))?)?"
    rf" (?:in|on|within|inside|from) {_IMAGE}(?: (?:provided|given|shown|above|below|here))?"
    r"| please| thanks| thank you)$"
)

_TAIL_CHARACTERS = 120
"""A longer tail is none: bounds the search for its start."""

_MAX_CUTS = 4


def normal_form(text: str) -> str:
    """A text for comparisons: without case, and without punctuation around its words.

    Only what quotes and ends words goes: a sign before a number, a separator within one, and a word
    that is nothing but punctuation have a meaning.
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    if len(words) > 1 and not words[-1].strip(_ENDS):  # as in French: "un chat ?"
        words.pop()
    return " ".join(
        [
            word if word.isalnum() else word.rstrip(_ENDS + _QUOTES).lstrip(_QUOTES) or word
            for word in words
        ]
    )


def question_form(question: str) -> str:
    """The normal form of a question, also without stock lead-ins and tails of English.

    "Looking at the picture, what is the dog doing?" becomes "what is the dog doing".
    """
    form = normal_form(question)
    for _ in range(_MAX_CUTS):
        lead_in = _LEAD_IN.match(form)
        rest = form[lead_in.end() :] if lead_in else form
        tail = _TAIL.search(rest, max(0, len(rest) - _TAIL_CHARACTERS))
        rest = rest[: tail.start()] if tail else rest
        if rest == form or not rest:
            break
        form = rest
    return form


def form_digest(question: str, options: Sequence[str] = ()) -> int:
    """64 bits of a question's normal form, and of those of its options in any order."""
    forms = [question_form(question), *sorted(map(normal_form, options))]
    content = "\n".join(forms).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
