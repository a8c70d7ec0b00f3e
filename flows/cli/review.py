"""`prefect-imageqa review`: a page on which people judge a sample of pairs."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from ...serving.errors import ImageQAError
from .options import ImageRoot, Output, PrivateHosts, Store

reviews = App()
"""Commands that `main` adds to its own."""

Sample = Annotated[int, Parameter(validator=Number(gte=1, lte=1000))]
"""With the images of 1,000 pairs, a page has some 40 MB."""


@reviews.command
def review(
    output: Output,
    /,
    *,
    to: Path = Path("review.html"),
    sample: Sample = 100,
    seed: int = 0,
    dataset: str | None = None,
    image_root: ImageRoot = None,
    store: Store = None,
    allow_private_hosts: PrivateHosts = False,
) -> int:
    """Write a page on which people judge a sample of pairs.

    It works offline, and saves their verdicts to a file: `evaluate --review FILE` compares these
    with the checks. Of pairs that fail no check, one, two, or more, there are as many each, as far
    as possible: so the share of right ones in the sample is not that of all pairs. Exit code 0:
    written; 1: something cannot be read or written.

    Example: prefect-imageqa review s3://bucket/qa --dataset qas.json

    Parameters
    ----------
    to:
        The file to write; there must be none of that name.
    sample:
        How many pairs to draw.
    seed:
        Another seed draws other pairs.
    dataset:
        The dataset of the run, from which the images are read; without it, the page has none.
    """
    from ...tasks.reporting.review import render_review, sample_pairs
    from ...tasks.runs.run_record import completed_run
    from ..open_store import open_store
    from .source import open_source, row_images

    output_store = open_store(output, store)
    names = completed_run(output_store).parameters.checks.names
    with open_source(output_store, dataset, image_root, allow_private_hosts) as source:
        pairs = sample_pairs(output_store, sample, seed, names, row_images(source))
    page = render_review(pairs, output_store.uri)
    try:
        with to.open("xb") as file:
            file.write(page)
    except FileExistsError:
        raise ImageQAError(f"{to} exists: give another file with --to, or remove it") from None
    except OSError as error:
        raise ImageQAError(f"{to}: {error.strerror or error}") from None
    print(f"{to}: {len(pairs):,} pairs")
    if dataset is None and source.columns.image is not None:
        print("the page has no images: give the run's dataset as --dataset", file=sys.stderr)
    return 0
