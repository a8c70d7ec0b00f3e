"""`prefect-imageqa report`: the page and the card of an output, made again."""

from typing import TYPE_CHECKING

from cyclopts import App

from .options import Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.images.references import ImageBase
    from ...tasks.object_store.store import ObjectStore
    from ...tasks.runs.records import RunRecord

reports = App()
"""Commands that `cli` takes over."""


@reports.command
def report(output: Output, /, *, store: Store = None, allow_private_hosts: Flag = False) -> int:
    """Make report.html and README.md of an output again, without asking the model.

    Every completed run makes them. Pictures are read from where the dataset has them; where it is
    gone, the rows are shown without. Exit code 0: made; 1: there is no completed run, or the
    output cannot be read or written.

    Example: prefect-imageqa report s3://bucket/qa

    Parameters
    ----------
    allow_private_hosts:
        Fetch web images for its pictures also from private and loopback addresses.
    """
    from ...tasks.images.reader import ImageReader
    from ...tasks.reporting.report import REPORT, make_report
    from ...tasks.runs.records import completed_run
    from ..run import open_store

    place = open_store(output, store)
    run = completed_run(place)
    base, images = _image_base(place, run), run.parameters.images
    with ImageReader(
        images.max_file_bytes,
        credentials=place.s3_credentials,
        allow_private_hosts=allow_private_hosts,
        root=images.root or None,
    ) as reader:
        make_report(place, reader=reader, images=images.settings, base=base)
    print(place.uri_of(REPORT))
    return 0


def _image_base(place: "ObjectStore", run: "RunRecord") -> "ImageBase":
    """What relative image paths are tried against."""
    from ...tasks.errors import DatasetError
    from ...tasks.images.references import ImageBase
    from ...tasks.loading.dataset import open_dataset

    told, root = run.parameters, run.parameters.images.root or None
    if not told.dataset:
        return ImageBase(image_root=root)
    try:
        dataset = open_dataset(
            told.dataset, told.columns, image_root=root, credentials=place.s3_credentials
        )
    except DatasetError:
        return ImageBase(image_root=root)  # it was moved since: no pictures
    return dataset.base
