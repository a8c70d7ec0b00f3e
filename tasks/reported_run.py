"""The completed run that a report tells of, as the output's manifest has it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import StoreError
from .images import ImageSettings
from .key_index import Array
from .object_store import ObjectStore
from .outputs import Run, RunCounts, last_completed, require_output
from .parts import DAMAGE
from .storing import MANIFEST, ObjectDamagedError, read_keys


class SourceColumns(BaseModel):
    """The dataset's columns by what they are for."""

    model_config = ConfigDict(frozen=True)

    image: str | None = "image"
    conversation: str = "conversation"
    output: str = "output"


class Source(BaseModel):
    """Where the rows came from.

    Attributes:
        dataset: path or URI; empty for a DataFrame.
        image_root: the only folder that images may come from.
        columns: what was read of it.
        limit: rows taken from its start; None for all.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str = ""
    image_root: str | None = None
    columns: SourceColumns = SourceColumns()
    limit: int | None = None


class ReportedCounts(RunCounts):
    """What a completed run counted."""

    reused: int = 0
    requests: int = 0
    seconds: float = 0.0


class ReportedRun(Run):
    """A completed run, with what it was told."""

    summary: ReportedCounts
    model_revision: str = ""
    system_prompt: str = ""
    user_prompt: str = ""
    prompt_style: str = ""
    sampling: Mapping[str, Any] = {}
    images: ImageSettings = ImageSettings()
    versions: Mapping[str, str] = {}
    source: Source = Source()


def reported_run(store: ObjectStore) -> ReportedRun:
    """The last completed run of an output.

    Raises:
        ObjectDamagedError: the manifest does not hold what was written.
        StoreError: there is no output, it cannot be read, or no run has completed.
    """
    manifest = require_output(store)
    if last_completed(store, manifest) is None:
        raise StoreError(
            f"{store.uri}: no run has completed here yet; the same command goes on from where "
            "it stopped"
        )
    try:
        return ReportedRun.model_validate(manifest)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "content"
        raise ObjectDamagedError(
            f"{store.uri_of(MANIFEST)} is not the record of a run ({where}): run it again"
        ) from None


def run_keys(store: ObjectStore, run: ReportedRun) -> Array:
    """The row keys of a run, in dataset order, an array of `KEY`.

    Raises:
        StoreError: they are missing, damaged or cannot be read.
    """
    return read_keys(store, run.keys)


@contextmanager
def export_named(store: ObjectStore, name: str) -> Iterator[None]:
    """Say what is damaged that every run writes, where it does not hold what was written."""
    try:
        yield
    except DAMAGE as error:
        raise ObjectDamagedError(
            f"{store.uri_of(name)} is damaged ({type(error).__name__}): "
            "run the same command as before, which writes it again"
        ) from None
