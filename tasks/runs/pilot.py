"""What is checked at the start of a run, before all rows are asked."""

from pydantic import Field, ValidationInfo, field_validator

from .form_types import Group


class Pilot(Group):
    """What is checked before all rows are asked: a pilot, and that the servers see the images."""

    rows: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Answer this many rows first, say how well that went and how long the rest "
        "will take, and stop if too few are usable. 0 means no pilot.",
    )
    min_parsed: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop after the pilot if less than this fraction of its rows has usable pairs.",
    )
    approval: bool = Field(
        default=False,
        description="Pause after the pilot until somebody presses Resume in Prefect's UI, or "
        "answers yes at the terminal.",
    )
    wait: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,  # a year: what waits takes no number at will
        description="Seconds to wait for that, before the run stops.",
    )
    image_proof: bool = Field(
        default=True,
        description="Before a pilot or more than 1,000 rows, ask a few rows with and without their "
        "images, and stop if the images add no tokens to the prompt.",
    )

    @field_validator("approval")
    @classmethod
    def _has_rows(cls, approval: bool, info: ValidationInfo) -> bool:
        if approval and info.data.get("rows") == 0:
            raise ValueError("an approval needs a pilot: give its number of rows")
        return approval
