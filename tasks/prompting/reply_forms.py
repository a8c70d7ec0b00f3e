"""What a reply should look like: the instruction in the prompt, and the JSON schema of it."""

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..records import ReplyForm

OPTION_LETTERS = ("A", "B", "C", "D")

_PAIR = "**Question:** <question>\n**Answer:** <answer>"
_OPTIONS = "\n".join(f"{letter}. <option>" for letter in OPTION_LETTERS)
_JSON_PAIR = '{"question": "...", "answer": "..."}'
_Text = Annotated[str, Field(min_length=1)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Pair(_Reply):
    question: _Text
    answer: _Text


class _MultipleChoice(_Reply):
    question: _Text
    options: Annotated[list[_Text], Field(min_length=4, max_length=4)]
    correct: Literal["A", "B", "C", "D"]


class _Answer(_Reply):
    answer: _Text


def reply_format(form: ReplyForm, pairs: int, *, json: bool) -> str:
    """The instruction that tells the model the form of its reply; empty if none is needed.

    Args:
        form: what the reply consists of.
        pairs: how many pairs or questions.
        json: whether it should be JSON.
    """
    if json:
        return f"Reply as JSON: {_json_example(form, pairs)}"
    match form:
        case ReplyForm.ANSWER:
            return ""
        case ReplyForm.QUESTIONS:
            return "Reply with the question only." if pairs == 1 else "Number the questions from 1."
        case ReplyForm.MULTIPLE_CHOICE:
            question, answer = _PAIR.replace("<answer>", "<letter>").split("\n")
            return f"Reply in this form:\n\n{question}\n{_OPTIONS}\n{answer}"
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
            options = ", ".join('"..."' for _ in OPTION_LETTERS)
            return f'{{"question": "...", "options": [{options}], "correct": "A"}}'
    if pairs == 1 and form is ReplyForm.PAIRS:
        return _JSON_PAIR
    return f'{{"pairs": [{_JSON_PAIR}, ...]}}'


@lru_cache
def reply_schema(form: ReplyForm, pairs: int) -> dict[str, Any]:
    """The JSON schema of a reply, for guided decoding.

    Args:
        form: what the reply consists of.
        pairs: how many pairs or questions it must have.
    """
    several = Field(min_length=pairs, max_length=pairs)
    match form:
        case ReplyForm.ANSWER:
            return _Answer.model_json_schema()
        case ReplyForm.MULTIPLE_CHOICE:
            return _MultipleChoice.model_json_schema()
        case ReplyForm.QUESTIONS:
            return create_model(
                "Questions", __base__=_Reply, questions=(Annotated[list[_Text], several], ...)
            ).model_json_schema()
    if pairs == 1 and form is ReplyForm.PAIRS:
        return _Pair.model_json_schema()
    return create_model(
        "Pairs", __base__=_Reply, pairs=(Annotated[list[_Pair], several], ...)
    ).model_json_schema()
