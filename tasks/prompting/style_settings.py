"""What a run says about its style."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
