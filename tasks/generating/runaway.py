"""Recognises a reply that had nothing more to say, but went on until `max_tokens`."""

_LEAST_LENGTH = 100
"""Characters that a loop must fill: no indentation, rule or row of a table is as long."""

_LEAST_REPEATS = 4
"""Times a text must be repeated: a refrain, or equal lines of code, rarely come four in a row."""

_LONGEST_UNIT = 300
"""Longest text that is looked for: a question-answer pair with its labels has 50 to 300."""


def is_runaway(text: str) -> bool:
    """Whether a text ends in a loop: in whitespace only, or in one text over and over.

    Guided decoding allows any amount of whitespace between the tokens of JSON, and a small model
    may repeat itself until it is cut off. Text that differs in its numbers does not count as
    repeated: the rows of a long table do not differ in more.

    Args:
        text: a reply that was cut off, which may end in the middle of a repetition.
    """
    tail = text[-_LEAST_REPEATS * _LONGEST_UNIT :]  # hostile texts may be long
    if len(tail) < _LEAST_LENGTH:
        return False
    return tail[-_LEAST_LENGTH:].isspace() or any(
        _repeats(tail, unit) for unit in range(1, _LONGEST_UNIT + 1)
    )


def _repeats(text: str, unit: int) -> bool:
    """Whether the end of a text has this period, which it has if it equals itself, shifted."""
    length = max(_LEAST_LENGTH, _LEAST_REPEATS * unit)
    return length <= len(text) and text[-length:-unit] == text[unit - length :]
