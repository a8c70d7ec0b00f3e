"""Where the images of a deployment's run may come from."""

from dataclasses import replace

from prefect.runtime import deployment

from ..tasks.images.reader import ImageReader
from ..tasks.loading.dataset import Dataset


def confine_images(table: Dataset, reader: ImageReader, root: str | None) -> Dataset:
    """In a run of a deployment, keep images inside the dataset's folder, or on S3 its bucket.

    There the dataset is often not that of the account that the worker runs as: a path in it could
    name any picture that the account can read. If an image root was given, that decides.
    """
    if root or not deployment.id:
        return table
    reader.confine(table.base.folder)
    return replace(table, base=replace(table.base, is_confined=True))
