"""`prefect-imageqa report`: recreates the report and the dataset card of an output."""

import sys

from cyclopts import App

from .options import ImageRoot, Output, PrivateHosts, Store

reports = App()
"""Commands that the main app includes."""


@reports.command
def report(
    output: Output,
    /,
    *,
    dataset: str | None = None,
    image_root: ImageRoot = None,
    store: Store = None,
    allow_private_hosts: PrivateHosts = False,
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
    """
    from ...tasks.reporting.report import REPORT
    from ..open_store import open_store
    from .source import open_source, write_report

    output_store = open_store(output, store)
    with open_source(output_store, dataset, image_root, allow_private_hosts) as source:
        write_report(source)
    print(output_store.uri_of(REPORT))
    if dataset is None and source.columns.image is not None:
        print("the report has no images: give the run's dataset as --dataset", file=sys.stderr)
    return 0
