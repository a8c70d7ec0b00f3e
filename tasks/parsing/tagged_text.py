"""Question-answer pairs from tags: `<question>...</question> <answer>...</answer>`."""

import re
from collections.abc import Mapping

from ..records import QAPair
from .extras import named
from .found_pairs import FoundPairs
from .wrappers import trim

_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>question|answer|options|choices|type|category|language|rationale"
    r"|explanation|justification)>",
    re.IGNORECASE | re.ASCII,
)
_FIELDS = {
    "type": "type",
    "category": "type",
    "language": "language",
    "rationale": "reasoning",
    "explanation": "reasoning",
    "justification": "reasoning",
}
_OPTIONS = {"options", "choices"}


def tagged_pairs(text: str) -> FoundPairs:
    """The pairs in tags: a question, its answer, and what else has tags until the next one."""
    pairs: list[QAPair] = []
    questions = 0
    before_gap: int | None = None
    values: dict[str, str] = {}
    start: tuple[str, int] | None = None
    for tag in _TAG.finditer(text):
        name = tag["name"].lower()
        if not tag["end"]:
            if name == "question":
                pairs += _pair(values)
                values = {}
                if questions > len(pairs) and before_gap is None:
                    before_gap = len(pairs)
                questions += 1
            start = (name, tag.end())
            continue
        if start is not None and start[0] == name and (value := trim(text[start[1] : tag.start()])):
            is_early = name == "answer" and "question" not in values
            if not is_early:
                values.setdefault(name, value)
        start = None
    pairs += _pair(values)
    return FoundPairs(pairs, max(questions - len(pairs), 0), before_gap=before_gap)


def _pair(values: Mapping[str, str]) -> list[QAPair]:
    if "question" not in values or "answer" not in values:
        return []
    options = next((text for name, text in values.items() if name in _OPTIONS), "")
    question = "\n".join(filter(None, (values["question"], options)))
    extras = named((_FIELDS[name], text) for name, text in values.items() if name in _FIELDS)
    return [QAPair(question, values["answer"], **extras)]
