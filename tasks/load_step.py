"""Temporary home of the load step."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from .loading import Dataset, open_dataset
from .steps import STEP

if TYPE_CHECKING:
    import pandas as pd


@task(name="load", **STEP)
def load_dataset(
    dataset: "str | Path | pd.DataFrame",
    image_key: str | None = "image",
    conversation_key: str = "conversation",
    image_root: str | None = None,
) -> Dataset:
    """Find a dataset and check that it can be used; its rows are read later, lazily.

    `image_key` None asks without images; see `open_dataset` for the rest.
    """
    return open_dataset(
        dataset,
        image_key=image_key or "",
        conversation_key=conversation_key,
        image_root=image_root,
        require_images=image_key is not None,
    )
