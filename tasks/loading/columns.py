"""Which columns of a dataset are read and written."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

# Prefect's form never submits an empty text for a field with another default: hence a choice.
_COLUMN_OR_NONE = {
    "anyOf": [
        {"type": "string", "title": "Column"},
        {"type": "null", "title": "No images"},
    ]
}


class Columns(BaseModel):
    """Which columns of the dataset are read, and which one is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[str | None, WithJsonSchema(_COLUMN_OR_NONE)] = Field(
        default="image", description="Column with the image, or a list."
    )
    conversation: str = Field(
        default="conversation",
        description="Column with the conversation; rows may lack one.",
    )
    output: str = Field(
        default="output", min_length=1, description="Column that gets the raw reply."
    )

    @field_validator("image")
    @classmethod
    def _no_empty_name(cls, name: str | None) -> str | None:
        return name or None
