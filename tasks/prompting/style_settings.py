"""What a run says about its style."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..records import ReplyForm
from .reply_forms import reply_format, reply_schema, response_format


@dataclass(frozen=True)
class StyleSettings:
    """What a run says about its style.

    Attributes:
        pairs: how many QA pairs to ask for; None for the style's own number.
        language: language of the pairs; empty to say nothing about it.
        difficulty: such as "easy"; empty to say nothing about it.
        questions_only: whether to ask for questions, which another pass answers.
        json: whether replies should be JSON.
        schema: the user's JSON schema of a reply; None for the one of the style's reply form.
        guided: whether the server is made to follow the schema.
        seed: of what is drawn for each row.
    """

    pairs: int | None = None
    language: str = ""
    difficulty: str = ""
    questions_only: bool = False
    json: bool = False
    schema: Mapping[str, Any] | None = None
    guided: bool = True
    seed: int = 0

    def instruction(self, form: ReplyForm, pairs: int) -> str:
        """What tells the model the form of its reply; empty if nothing needs to be said."""
        if self.schema is not None:
            schema = json.dumps(self.schema, ensure_ascii=False)
            return f"Reply as JSON that follows this schema: {schema}"
        return reply_format(form, pairs, json=self.json)

    def options(self, form: ReplyForm, pairs: int) -> dict[str, Any]:
        """The request options that make the server follow that form."""
        if not (self.json and self.guided):
            return {}
        schema = reply_schema(form, pairs) if self.schema is None else self.schema
        return {"response_format": response_format(schema)}
