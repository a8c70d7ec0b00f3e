"""Question-answer pairs from tags: `<question>...</question> <answer>...</answer>`."""

import re

from ..records import QAPair
from .found_pairs import FoundPairs
from .wrappers import trim

_TAG = re.compile(r"<(?P<end>/?)(?P<name>question|answer)>", re.IGNORECASE | re.ASCII)


def tagged_pairs(text: str) -> FoundPairs:
    """The pairs in tags; a question counts if the next tags hold its answer."""
    pairs, questions = [], 0
    question, start = "", None
    for tag in _TAG.finditer(text):
        name = tag["name"].lower()
        if not tag["end"]:
            questions += name == "question"
            start = (name, tag.end())
            continue
        value = trim(text[start[1] : tag.start()]) if start and start[0] == name else ""
        start = None
        if name == "question":
            question = value
        else:
            if question and value:
                pairs.append(QAPair(question, value))
            question = ""
    return FoundPairs(pairs, max(questions - len(pairs), 0))
