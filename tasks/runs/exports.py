"""Which files a run exports, above all for training."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .form_types import Group

ExportFormat = Literal["llava", "sharegpt", "qwen", "openai", "hf", "webdataset"]
ExportImages = Literal["auto", "paths", "copy", "embed"]

EXPORT_IMAGES: Mapping[ExportFormat, Sequence[ExportImages]] = {
    "llava": ("copy", "paths"),
    "sharegpt": ("copy", "paths"),
    "qwen": ("copy", "paths"),
    "openai": ("embed", "paths"),
    "hf": ("embed", "paths"),
    "webdataset": ("embed",),
}
"""How the formats can have images; the first is the default."""

_IMAGES_VERB = {"paths": "refer to images by paths", "copy": "have copies", "embed": "embed images"}


class Exports(Group):
    """Which files are written in addition to the exports that every run writes."""

    formats: tuple[ExportFormat, ...] = Field(
        default=(),
        description="Formats to write for training, each under export/ in the output: llava, "
        "sharegpt (LLaMA-Factory and ms-swift), qwen (Qwen-VL), openai, hf (Parquet for Hugging "
        "Face), webdataset.",
    )
    images: ExportImages = Field(
        default="auto",
        description="How these formats have the images: paths refers to them where they are, copy "
        "puts them into files beside, embed into the files themselves. By default (auto) hf, "
        "openai and webdataset embed, and the others copy.",
    )
    shard_size: Annotated[int, Field(ge=1, title="Shard size")] | None = Field(
        default=None,
        description="Conversations per file; by default one file, of hf and webdataset several.",
    )
    validation: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the images whose conversations go to a validation split. The same "
        "image is never in both.",
    )
    split_seed: int = Field(default=0, description="Another seed gives another validation split.")
    json_array: bool = Field(
        default=False, description="Also write qa.json: the rows of qa.jsonl as one JSON array."
    )

    @model_validator(mode="before")
    @classmethod
    def _formats_only(cls, value: Any) -> Any:
        return {"formats": value} if isinstance(value, list | tuple) else value

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[ExportFormat, ...]) -> tuple[ExportFormat, ...]:
        return tuple(dict.fromkeys(formats))

    @field_validator("images")
    @classmethod
    def _check_images(cls, images: ExportImages, info: ValidationInfo) -> ExportImages:
        for name in info.data.get("formats", ()):
            allowed = EXPORT_IMAGES[name]
            if images not in ("auto", *allowed):
                raise ValueError(
                    f"format {name} cannot {_IMAGES_VERB[images]}: give {' or '.join(allowed)}"
                )
        return images
