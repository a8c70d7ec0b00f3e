"""How many workers a run has, and what starts them."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from .form_types import Group, OptionalText

MAX_WORKERS = 64
"""The run has two batches in flight for each; more workers than it has batches for were idle."""

EngineName = Literal["threads", "processes", "work-pool", "ray", "dask"]


class Workers(Group):
    """How many workers prepare images, ask the servers and store replies, and what starts them."""

    workers: int = Field(
        default=1,
        ge=1,
        le=MAX_WORKERS,
        description="Number of workers; with 1 and threads, the run does everything itself.",
    )
    engine: EngineName = Field(
        default="threads",
        description="What starts them: threads of the run's own process, processes on its machine, "
        "flow runs of a work-pool, or tasks on a ray or dask cluster.",
    )
    engine_address: OptionalText = Field(
        default="",
        description="Of a work-pool, the deployment of the workers, by default "
        "image-qa-worker/worker; of ray or dask, the address of the cluster, by default a local "
        "one that ends with the run.",
    )

    @field_validator("engine_address")
    @classmethod
    def _check_address(cls, address: str | None, info: ValidationInfo) -> str | None:
        engine = info.data.get("engine")
        if (address or "").strip() and engine in ("threads", "processes"):
            raise ValueError(f"engine {engine} has no address")
        return address

    @property
    def are_wanted(self) -> bool:
        """Whether the run gives its batches to workers."""
        return self.workers > 1 or self.engine != "threads"
