"""`prefect-imageqa report`: recreates the report and the dataset card of an output."""

from typing import TYPE_CHECKING

from cyclopts import App

from .options import Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.images.references import ImageBase
    from ...tasks.object_store.store import ObjectStore
    from ...tasks.runs.run_record import RunRecord

reports = App()
"""Commands that the main app includes."""


@reports.command
def report(output: Output, /, *, store: Store = None, allow_private_hosts: Flag = False) -> int:
    """Recreate report.html and README.md of an output, without asking the model.

    Every completed run writes them. Images are read from their original locations; if the dataset
    is missing, its rows are shown without images. Exit code 0: written; 1: there is no completed
    run, or the output cannot be read or written.

    Example: prefect-imageqa report s3://bucket/qa

    Parameters
    ----------
    allow_private_hosts:
        Also fetch web images from private and loopback addresses.
    """
    from ...tasks.images.reader import ImageReader
    from ...tasks.reporting.report import REPORT, make_report
    from ...tasks.runs.run_record import completed_run
    from ..run import open_store

    output_store = open_store(output, store)
    run = completed_run(output_store)
    base, images = _image_base(output_store, run), run.parameters.images
    with ImageReader(
        images.max_file_bytes,
        credentials=output_store.s3_credentials,
        allow_private_hosts=allow_private_hosts,
        root=images.root or None,
    ) as reader:
        make_report(output_store, reader=reader, images=images.settings, base=base)
    print(output_store.uri_of(REPORT))
    return 0


def _image_base(output: "ObjectStore", run: "RunRecord") -> "ImageBase":
    """What relative image paths are resolved against."""
    from ...tasks.errors import DatasetError
    from ...tasks.images.references import ImageBase
    from ...tasks.loading.dataset import open_dataset

    parameters, root = run.parameters, run.parameters.images.root or None
    if not parameters.dataset:
        return ImageBase(image_root=root)
    try:
        dataset = open_dataset(
            parameters.dataset,
            parameters.columns,
            image_root=root,
            credentials=output.s3_credentials,
        )
    except DatasetError:
        return ImageBase(image_root=root)  # moved since the run: no images
    return dataset.base
