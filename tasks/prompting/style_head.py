"""The YAML head of a style file."""

from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ...serving.printable import printable
from ..errors import ImageQAError
from ..records import ReplyForm

GIVEN = ("language", "difficulty", "pairs", "reply_format", "as_json")
"""Variables of every template that are not columns."""

QUESTION = "question"
"""Variable of the section `# answer`."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
Line = Annotated[StrictStr, Field(min_length=1, max_length=300, pattern=r"^[^\n]+$")]
Variable = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Values = dict[StrictStr, StrictStr]

_REQUIRED = {"name", "version", "description", "reply"}
_NOT_ASKED = {
    ReplyForm.QUESTIONS: "is that of a section `# questions`",
    ReplyForm.GIVEN: "asks nothing",
}
_FORMS = [form.value for form in ReplyForm if form not in _NOT_ASKED]
_SINGLE = (ReplyForm.ANSWER, ReplyForm.MULTIPLE_CHOICE)


class StyleHead(BaseModel):
    """What a style is called, and what it asks for.

    Attributes:
        name: words of a-z and 0-9, joined by hyphens.
        version: another version is another style.
        description: one line.
        reply: what a reply consists of.
        type: template of the type of the questions.
        language: template of the language of the pairs, unless the run says it.
        pairs: how many pairs it asks for, unless the run says so.
        question: template of the question that a reply of the form `answer` answers; by default
            the user message.
        draw: variable -> value -> its text; one of the values is drawn for each row.
        example: what it gives, for people who choose a style.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: Annotated[int, Field(ge=1, strict=True)]
    description: Line
    reply: ReplyForm
    type: StrictStr = ""
    language: StrictStr = ""
    pairs: Annotated[int, Field(ge=1, le=20, strict=True)] = 1
    question: StrictStr = ""
    draw: dict[Variable, Values] = Field(default_factory=dict)
    example: Annotated[StrictStr, Field(max_length=2000)] = ""

    @field_validator("reply")
    @classmethod
    def _no_questions(cls, form: ReplyForm) -> ReplyForm:
        if form in _NOT_ASKED:
            raise ValueError(_NOT_ASKED[form])
        return form

    @field_validator("draw", mode="before")
    @classmethod
    def _with_texts(cls, draw: Any) -> Any:
        """A list of values is a mapping whose texts are the values themselves."""
        if not isinstance(draw, Mapping):
            return draw
        return {
            name: {value: value for value in values} if _is_list(values) else values
            for name, values in draw.items()
        }

    @model_validator(mode="after")
    def _check(self) -> "StyleHead":
        for name, values in self.draw.items():
            if name in GIVEN or name == QUESTION:
                raise ValueError(f"draw: {name} is a variable already")
            if not values:
                raise ValueError(f"draw: {name} has no values")
            if any("/" in value or not value.strip() for value in values):
                raise ValueError(f"draw: a value of {name} is empty, or has a /")
        if self.reply in _SINGLE and self.pairs != 1:
            raise ValueError(f"pairs: a reply of the form {self.reply} is one")
        return self


def _is_list(values: Any) -> bool:
    """Whether it is a list of scalars; those that are no texts are refused later."""
    return isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=_ALIAS, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


_NOT_YAML = "is not valid YAML (no tabs; a text that contains ': ' needs quotes)"
_ALIAS = "has an alias (*), which a style cannot have"


def parse_head(text: str, where: str) -> StyleHead:
    """Check the head of a style file.

    Raises:
        ImageQAError: what is wrong with it; values are not shown, since the file may be any.
    """
    try:
        head = yaml.load(text, _Loader)  # noqa: S506 - it is a safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 2}" if mark else ""
        reason = _ALIAS if error.problem == _ALIAS else _NOT_YAML
        raise ImageQAError(f"{where}{line}: the head {reason}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ImageQAError(f"{where}: the head {_NOT_YAML}") from None
    if not isinstance(head, dict) or not all(isinstance(key, str) for key in head):
        raise ImageQAError(f"{where} is no style: its head has no name, version, ...")
    if missing := sorted(_REQUIRED - head.keys()):
        raise ImageQAError(f"{where}: the head has no {', '.join(missing)}")
    try:
        return StyleHead.model_validate(head)
    except ValidationError as error:
        raise ImageQAError(f"{where}: the head's {_reason(error)}") from None


_REASONS = {
    "extra_forbidden": "is no key of a style; there are " + ", ".join(StyleHead.model_fields),
    "enum": f"is none of {', '.join(_FORMS)}",
    "string_type": 'must be text: write it in quotes, such as "yes"',
}


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(printable(str(part), 40) for part in first["loc"] if part != "[key]")
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{where} {message}" if where else message
    if where == "name":
        return "name must be words of a-z and 0-9, joined by hyphens"
    if reason := _REASONS.get(first["type"]):
        return f"{where} {reason}"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
