"""What a reply should look like: the instruction in the prompt, and the JSON schema of it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

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


def stated_form(form: ReplyForm) -> str:
    """How to write a reply of this form, for a model that was not told or did not follow it."""
    match form:
        case ReplyForm.ANSWER:
            return "Write nothing but the answer."
        case ReplyForm.QUESTIONS:
            return "Write nothing but the questions, one on a line."
        case ReplyForm.MULTIPLE_CHOICE:
            return reply_format(form, 1, json=False)
    return "Mark each question with **Question:** and its answer with **Answer:**."


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
            return _schema(_Answer)
        case ReplyForm.MULTIPLE_CHOICE:
            return _schema(_MultipleChoice)
        case ReplyForm.QUESTIONS:
            return _schema(
                create_model(
                    "Questions", __base__=_Reply, questions=(Annotated[list[_Text], several], ...)
                )
            )
    if pairs == 1 and form is ReplyForm.PAIRS:
        return _schema(_Pair)
    return _schema(
        create_model("Pairs", __base__=_Reply, pairs=(Annotated[list[_Pair], several], ...))
    )


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(schema_generator=_WithoutTitles)


class _WithoutTitles(GenerateJsonSchema):
    """Leaves out titles, which constrain nothing, but are sent with every request."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        generated = super().generate(schema, mode)
        for each in (generated, *generated.get("$defs", {}).values()):
            each.pop("title", None)
        return generated


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The request option that makes a server follow a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": dict(schema)}}
