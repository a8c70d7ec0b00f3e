"""`prefect-imageqa export`: writes the pairs of an output in a format that trainers load."""

import logging
import sys
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from ...tasks.errors import DatasetError
from ...tasks.exporting.trainers import FORMATS, write_export
from ...tasks.exporting.trainers.export_record import export_folder, split_lines
from ...tasks.exporting.trainers.write import warning_lines
from ...tasks.runs.exports import ExportFormat, ExportImages, Exports
from ..open_store import open_store
from .options import Count, Output, PrivateHosts, Store, UsageError
from .run import validation_message
from .source import open_source, write_report


def export(
    output: Output,
    /,
    *,
    format: Annotated[ExportFormat | None, Parameter(name="--format")] = None,  # noqa: A002
    dataset: str | None = None,
    to: str | None = None,
    image_root: str | None = None,
    images: ExportImages = "auto",
    shard_size: Count | None = None,
    validation: float = 0.0,
    seed: int = 0,
    store: Store = None,
    allow_private_hosts: PrivateHosts = False,
) -> int:
    """Write the pairs of an output in a format that trainers load, without asking the model.

    A run does the same with --export. Both list it in the report and the dataset card. Exit code 0:
    written; 1: there is no completed run, the dataset is not the one of the run, or something
    cannot be read or written; 2: usage error.

    Example: prefect-imageqa export s3://bucket/qa --format llava --dataset qas.json

    Parameters
    ----------
    format:
        Required: llava, sharegpt (LLaMA-Factory and ms-swift), qwen (Qwen-VL), openai, hf (Parquet
        for Hugging Face) or webdataset.
    dataset:
        The dataset of the run, which has the images. An output is not asked where images are: if
        it is someone else's, it could name any file.
    to:
        Local path or s3:// URI of the folder to write, instead of export/FORMAT in the output.
    image_root:
        As --image-root of the run; with --images paths, the paths are relative to it.
    images:
        paths refers to images where they are, copy puts them into files beside, embed into the
        files themselves. By default (auto) hf, openai and webdataset embed, and the others copy.
    shard_size:
        Conversations per file; by default one file, of hf and webdataset several.
    validation:
        Share of the images whose conversations go to a validation split. The same image is never
        in both.
    seed:
        Another seed gives another validation split.
    """
    if format is None:
        raise UsageError(f"give --format: {', '.join(FORMATS)}")
    try:
        settings = Exports(
            formats=(format,),
            images=images,
            shard_size=shard_size,
            validation=validation,
            split_seed=seed,
        )
    except ValidationError as error:
        raise UsageError(validation_message(error)) from error
    output_store = open_store(output, store)
    target = open_store(to, store) if to else export_folder(output_store, format)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with open_source(output_store, dataset, image_root, allow_private_hosts) as source:
        if dataset is None and (source.columns.image or source.columns.conversation):
            raise DatasetError("give the run's dataset as --dataset: the images are read from it")
        record = write_export(source, format, settings, target)
        if not to:
            write_report(source)  # it lists the exports
    for line in warning_lines(record):
        print(line, file=sys.stderr)
    for line in split_lines(record):
        print(line)
    print(target.uri)
    return 0
