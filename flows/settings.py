"""What a run is told. Deployments store these names."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

RESERVED_OPTIONS = frozenset({"model", "messages", "stream", "n"})
"""Request fields that a run sets itself, or that would change the shape of a reply.

Nor may `extra_body` set what has a field of its own here.
"""


class Sampling(BaseModel):
    """How the model samples its replies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.7, ge=0, le=2, description="0 always takes the best.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Probability mass sampled from.")
    top_k: int = Field(default=40, ge=-1, description="Tokens sampled from; 0 or -1 is all.")
    repetition_penalty: float = Field(default=1.0, gt=0, description="1 is no penalty.")
    seed: int | None = Field(
        default=42,
        description="Each row's own seed derives from it and the row key; empty is random.",
    )
    max_tokens: int = Field(
        default=512, ge=1, description="Tokens of a reply; a longer one is quarantined."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further vLLM request options, such as response_format or min_p.",
    )

    @model_validator(mode="after")
    def _check_extra_body(self) -> Self:
        fields = type(self).model_fields.keys()
        if clash := sorted((RESERVED_OPTIONS | fields) & self.extra_body.keys()):
            raise ValueError(f"extra_body may not set {', '.join(clash)}")
        try:
            json.dumps(self.extra_body)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        return self

    def options(self) -> dict[str, Any]:
        """The options as they stand in a request's body."""
        named = self.model_dump(exclude={"extra_body"}, exclude_none=True)
        return named | self.extra_body


if TYPE_CHECKING:
    DatasetLike = str | Path | pd.DataFrame
else:
    # Pydantic must not look into a DataFrame, and pandas is slow to import; the form shows a text.
    DatasetLike = Annotated[Any, WithJsonSchema({"type": "string"})]
"""A dataset: where it is, or from Python a pandas DataFrame."""
