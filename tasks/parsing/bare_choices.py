"""Multiple choice without a label before the question, or without one before the answer."""

import re

from ..records import QAPair
from .extras import Extras
from .found_pairs import FoundPairs
from .labelled_text import value_after
from .labels import ANSWER, QUESTION, line_label
from .multiple_choice import split_options, without_emphasis

_LABEL = line_label(answer=ANSWER, question=QUESTION)
"""Words only: "A:" is an option here."""

_LETTER_ALONE = re.compile(r"\n[^\S\n]*+[*_(]*+([A-J])[*_).]*+\s*+\Z")
_NEAR = 40
"""Characters at the end of a reply in which such a letter is looked for."""

_NUMBER = re.compile(r"#{0,6}+\s*+\d{1,3}[.)、][*_]*+\s*+")


def bare_choices(text: str) -> FoundPairs:
    """A whole reply that is a question, its options, and which one is right.

    That is said in a line with a label, by a letter in a line of its own, or by a tick.
    """
    if (above := _LABEL.match(text)) and above["question"]:
        text = text[above.end() :]
    label = next(_LABEL.finditer(text), None)
    if label is not None and label["question"]:
        return FoundPairs([])
    end = len(text) if label is None else label.start()
    said, extras = "", Extras()
    if label is not None:
        said, extras = value_after(text, label, len(text))
    elif letter := _LETTER_ALONE.search(text, max(len(text) - _NEAR, 0)):
        said, end = letter[1], letter.start()
    choices = split_options(text[:end].strip(), digits=False)
    if choices is None:
        return FoundPairs([])
    question = choices.question.split("\n\n")[-1].strip()
    question = without_emphasis(_NUMBER.sub("", without_emphasis(question), count=1))
    answer = said or choices.right
    if not answer:
        return FoundPairs([], 1, "does not say which option is right")
    return FoundPairs([QAPair(question, answer, options=tuple(choices.options), **extras)])
