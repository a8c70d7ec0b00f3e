"""`prefect-imageqa report`: recreates the report and the dataset card of an output."""

import sys
from typing import TYPE_CHECKING

from cyclopts import App

from .options import Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.object_store.store import ObjectStore
    from ...tasks.reporting.row_images import ImageSource
    from ...tasks.runs.run_record import RunRecord

reports = App()
"""Commands that the main app includes."""


@reports.command
def report(
    output: Output,
    /,
    *,
    dataset: str | None = None,
    image_root: str | None = None,
    store: Store = None,
    allow_private_hosts: Flag = False,
) -> int:
    """Recreate report.html and README.md of an output, without asking the model.

    Every completed run writes them. Exit code 0: written; 1: there is no completed run, or the
    output or the dataset cannot be read or written.

    Example: prefect-imageqa report s3://bucket/qa --dataset qas.json

    Parameters
    ----------
    dataset:
        The dataset of the run, from which the images are read; without it, the report has none. An
        output is not asked where images are: if it is someone else's, it could name any file.
    image_root:
        As --image-root of the run.
    allow_private_hosts:
        Also fetch web images from private and loopback addresses.
    """
    from ...tasks.images.prepare import ImageSettings
    from ...tasks.images.reader import ImageReader
    from ...tasks.reporting.report import REPORT, make_report
    from ...tasks.reporting.row_images import RowImages
    from ...tasks.runs.run_record import completed_run
    from ..open_store import open_store

    output_store, images = open_store(output, store), ImageSettings()
    run = completed_run(output_store)
    source = _image_source(output_store, run, dataset, image_root)
    with ImageReader(
        images.max_file_bytes,
        credentials=output_store.s3_credentials,
        allow_private_hosts=allow_private_hosts,
        root=image_root,
    ) as reader:
        shown = RowImages(source, reader, images) if source else None
        make_report(output_store, shown)
    print(output_store.uri_of(REPORT))
    if dataset is None and run.parameters.columns.image is not None:
        print("the report has no images: give the run's dataset as --dataset", file=sys.stderr)
    return 0


def _image_source(
    output: "ObjectStore", run: "RunRecord", dataset: str | None, image_root: str | None
) -> "ImageSource | None":
    from ...tasks.loading.dataset import open_dataset
    from ...tasks.reporting.row_images import ImageSource

    columns = run.parameters.columns
    if dataset is None or columns.image is None:
        return None
    table = open_dataset(dataset, columns, image_root=image_root, credentials=output.s3_credentials)
    return ImageSource(table.rows, table.columns, table.base)
