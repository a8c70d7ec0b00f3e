"""A finished output and the dataset it is about, for the commands that read both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ...tasks.exporting.trainers import ExportSource
from ...tasks.images.reader import ImageReader
from ...tasks.images.references import ImageBase
from ...tasks.loading.load import open_dataset
from ...tasks.object_store.store import ObjectStore
from ...tasks.reporting.report import make_report
from ...tasks.reporting.row_images import ImageSource, RowImages
from ...tasks.runs.run_record import completed_run


@contextmanager
def open_source(
    output: ObjectStore, dataset: str | None, image_root: str | None, allow_private_hosts: bool
) -> Iterator[ExportSource]:
    """The last completed run of an output, with the images of the dataset that the caller names."""
    parameters = completed_run(output).parameters
    columns, limits = parameters.columns, parameters.images.settings
    with ImageReader(
        limits.max_file_bytes,
        credentials=output.s3_credentials,
        allow_private_hosts=allow_private_hosts,
        root=image_root,
    ) as reader:
        if dataset is None:
            yield ExportSource(output, None, columns, ImageBase(), reader, limits)
            return
        table = open_dataset(
            dataset, columns, image_root=image_root, credentials=output.s3_credentials
        )
        table = replace(table, max_rows=parameters.max_rows, samples=parameters.asking.samples)
        yield ExportSource(output, table.rows, table.columns, table.base, reader, limits)


def write_report(source: ExportSource) -> None:
    """Write the report and the dataset card of an output."""
    make_report(source.output, row_images(source))


def row_images(source: ExportSource) -> RowImages | None:
    """The images of the rows of an output; None if no dataset was named."""
    if source.rows is None:
        return None
    found = ImageSource(source.rows, source.columns, source.base)
    return RowImages(found, source.reader, source.limits)
