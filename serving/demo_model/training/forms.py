"""The forms of a reply: how it is asked for, and how it is written.

The requests are copies of those in `tasks/prompting/reply_forms.py`, which the server environment
cannot import; a test compares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

QUESTION_WEIGHT = 1.0  # many questions are good, but their first words say what the style asks for
FORM_WEIGHT = 4.0  # a few tokens determine the form and the number of pairs
LETTERS = ("A", "B", "C", "D")

_PAIR = "**Question:** <question>\n**Answer:** <answer>"
_JSON_PAIR = '{"question": "...", "answer": "..."}'


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a branch and the weight of its tokens in the loss; 0 for input."""

    text: str
    weight: float


Branch = tuple[Span, ...]


class ReplyForm(StrEnum):
    """What a reply consists of."""

    PAIRS = "pairs"
    DIALOGUE = "dialogue"
    MULTIPLE_CHOICE = "multiple_choice"
    ANSWER = "answer"
    QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class Content:
    """What a reply says, whatever its form.

    Attributes:
        pairs: questions and answers; of multiple choice, the answer is the letter.
        surprising: whether the options follow from neither the prompt nor the question.
    """

    pairs: tuple[tuple[str, str], ...]
    options: tuple[str, ...] = ()
    surprising: bool = False


def reply_format(form: ReplyForm, pairs: int, *, json: bool) -> str:
    """The instruction that a style's prompt has about the form of the reply."""
    if json:
        return f"Reply as JSON: {_json_example(form, pairs)}"
    match form:
        case ReplyForm.ANSWER:
            return ""
        case ReplyForm.QUESTIONS:
            return "Reply with the question only." if pairs == 1 else "Number the questions from 1."
        case ReplyForm.MULTIPLE_CHOICE:
            options = "\n".join(f"{letter}. <option>" for letter in LETTERS)
            question, answer = _PAIR.replace("<answer>", "<letter>").split("\n")
            return f"Reply in this form:\n\n{question}\n{options}\n{answer}"
    if pairs == 1 and form is ReplyForm.PAIRS:
        return f"Reply in this form:\n\n{_PAIR}"
    return f"Reply in this form, numbered from 1 to {pairs}:\n\n1. {_PAIR}"


def _json_example(form: ReplyForm, pairs: int) -> str:
    match form:
        case ReplyForm.ANSWER:
            return '{"answer": "..."}'
        case ReplyForm.QUESTIONS:
            return '{"questions": ["...", ...]}'
        case ReplyForm.MULTIPLE_CHOICE:
            options = ", ".join('"..."' for _ in LETTERS)
            return f'{{"question": "...", "options": [{options}], "correct": "A"}}'
    if pairs == 1 and form is ReplyForm.PAIRS:
        return _JSON_PAIR
    return f'{{"pairs": [{_JSON_PAIR}, ...]}}'


def write_reply(form: ReplyForm, content: Content, *, json: bool) -> Branch:
    """The reply in a form, as text or as JSON with the spacing of `json.dumps`."""
    match form:
        case ReplyForm.ANSWER:
            answer = Span(content.pairs[0][1], 1)
            return _around('{"answer": "', (answer,), '"}') if json else (answer,)
        case ReplyForm.QUESTIONS:
            return _questions([question for question, _ in content.pairs], json)
        case ReplyForm.MULTIPLE_CHOICE:
            return _multiple_choice(content, json)
    several = len(content.pairs) > 1 or form is ReplyForm.DIALOGUE
    if json:
        spans = _joined([_json_pair(*pair) for pair in content.pairs], ", ")
        return _around('{"pairs": [', spans, "]}") if several else spans
    blocks = [
        _text_pair(f"{number}. " if several else "", *pair)
        for number, pair in enumerate(content.pairs, 1)
    ]
    return _joined(blocks, "\n\n")


def _text_pair(label: str, question: str, answer: str) -> Branch:
    return (
        Span(f"{label}**Question:** ", FORM_WEIGHT),
        Span(question, QUESTION_WEIGHT),
        Span(f"\n**Answer:** {answer}", 1),
    )


def _json_pair(question: str, answer: str) -> Branch:
    return (
        Span('{"question": "', FORM_WEIGHT),
        Span(question, QUESTION_WEIGHT),
        Span(f'", "answer": "{answer}"}}', 1),
    )


def _questions(questions: Sequence[str], json: bool) -> Branch:
    if json:
        items = [(Span(f'"{question}"', QUESTION_WEIGHT),) for question in questions]
        return _around('{"questions": [', _joined(items, ", "), "]}")
    if len(questions) == 1:
        return (Span(questions[0], QUESTION_WEIGHT),)
    lines: list[Branch] = [
        (Span(f"{number}. ", FORM_WEIGHT), Span(question, QUESTION_WEIGHT))
        for number, question in enumerate(questions, 1)
    ]
    return _joined(lines, "\n")


def _multiple_choice(content: Content, json: bool) -> Branch:
    ((question, letter),) = content.pairs
    first, *others = content.options
    weight = QUESTION_WEIGHT if content.surprising else 6.0  # it decides all others
    if json:
        rest = "".join(f', "{option}"' for option in others)
        return (
            Span('{"question": "', FORM_WEIGHT),
            Span(question, QUESTION_WEIGHT),
            Span('", "options": ["', FORM_WEIGHT),
            Span(first, weight),
            Span(f'"{rest}], "correct": "', 1),
            Span(f'{letter}"}}', FORM_WEIGHT),
        )
    rest = "".join(
        f"\n{option_letter}. {option}"
        for option_letter, option in zip(LETTERS[1:], others, strict=True)
    )
    return (
        Span("**Question:** ", FORM_WEIGHT),
        Span(question, QUESTION_WEIGHT),
        Span("\nA. ", FORM_WEIGHT),
        Span(first, weight),
        Span(f"{rest}\n**Answer:** ", 1),
        Span(letter, FORM_WEIGHT),
    )


def _joined(parts: Sequence[Branch], separator: str) -> Branch:
    spans = list(parts[0])
    for part in parts[1:]:
        spans += [Span(separator, FORM_WEIGHT), *part]
    return tuple(spans)


def _around(start: str, spans: Branch, end: str) -> Branch:
    return (Span(start, FORM_WEIGHT), *spans, Span(end, FORM_WEIGHT))
