"""The record of a run in its output: its parameters, its progress and its result.

`runs/<id>.json` is written at every heartbeat and at the end of a run; `manifest.json` has a copy
of the record of the last completed run.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..concurrency import STORE_THREADS
from ..errors import ObjectCorruptedError, ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..storing.layout import (
    MANIFEST,
    MAX_METADATA_BYTES,
    RUNS,
    read_manifest,
    run_name,
    write_manifest,
)
from .heartbeat import is_alive
from .parameters import RunParameters
from .run_counts import RunCounts

_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]*$", max_length=255)]
"""A value that messages contain unescaped: a forged record must not inject control characters."""

MAX_NOTES = 5
"""Number of notes in a record: they have to fit a screen."""

LINE_LENGTH = 300
"""Characters of a note in a record: about four lines of a terminal."""

_Line = Annotated[str, Field(pattern=r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]*$", max_length=LINE_LENGTH)]
"""A line of text without control characters."""


class RunRecord(BaseModel):
    """The record of a run.

    Attributes:
        run: id of the run.
        state: its state; a run that was killed stays "running", or "waiting" for another run.
        dataset: short name of the dataset.
        model: name of the served model; empty until the server is found, like `configuration` and
            `keys`.
        model_revision: distinguishes versions of the model; may be empty.
        user_prompt: the prompt for rows without a conversation.
        parser: label of the parser configuration.
        configuration: digest of everything that decides the answers.
        keys: name of the object with the row keys of this configuration and dataset.
        host: name of the machine.
        machine: identifies the machine, see `this_process`.
        process: identifies the process on that machine.
        queued: when it started to wait until it may write to the output.
        started: when it was allowed to write.
        updated: time of the last heartbeat.
        total: rows of the dataset, if known.
        counts: counts at the last heartbeat, or at the end.
        progress: how far and how fast it was at the last heartbeat, as a sentence; empty before its
            first row and after the end, like `notes`.
        notes: what a user should know at that time: what it waited for and how long at most.
        last_reply: when the model answered last; None if it has not.
        error: why it did not complete.
        dropped: whether `clean` has removed its rows, so that it counts as finished.
        versions: versions of the most relevant packages.
        parameters: its parameters.
    """

    model_config = ConfigDict(frozen=True)

    run: _Word
    state: Literal["waiting", "running", "failed", "interrupted", "completed"]
    dataset: str
    model: str = ""
    model_revision: str = ""
    user_prompt: str
    parser: str
    configuration: str = ""
    keys: str = ""
    host: _Word
    machine: _Word
    process: _Word
    queued: AwareDatetime
    started: AwareDatetime
    updated: AwareDatetime
    total: int | None = None
    counts: RunCounts = RunCounts()
    progress: _Line = ""
    notes: Annotated[tuple[_Line, ...], Field(max_length=MAX_NOTES)] = ()
    last_reply: AwareDatetime | None = None
    error: str = ""
    dropped: bool = False
    versions: Mapping[str, str]
    parameters: RunParameters

    @property
    def is_completed(self) -> bool:
        """Whether all rows of the dataset are finished."""
        return self.state == "completed"

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat."""
        return _seconds_since(self.updated)

    @property
    def reply_age(self) -> float | None:
        """Seconds since the model answered last; None if it has not."""
        return None if self.last_reply is None else _seconds_since(self.last_reply)

    @property
    def is_live(self) -> bool:
        """Whether the run is in progress, or waits for another run; see `is_alive`."""
        if self.state not in ("running", "waiting"):
            return False
        patience = self.parameters.limits.store_wait
        return is_alive(self.run, self.machine, self.process, self.updated, patience)

    def write(self, store: ObjectStore) -> None:
        """Store the record."""
        # Not pydantic's JSON serializer: it rejects file names that are not valid UTF-8.
        content = json.dumps(self.model_dump(mode="json"), indent=2)
        store.write(run_name(self.run), content.encode())


def _seconds_since(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


def complete_run(store: ObjectStore, record: RunRecord) -> None:
    """Store the record of a completed run, and make it the one that the exports are of."""
    record.write(store)
    write_manifest(store, record.model_dump(mode="json"))


def last_completed(store: ObjectStore) -> RunRecord | None:
    """The last completed run, which the exports are of; None if no run has completed.

    Raises:
        ObjectCorruptedError: the manifest is corrupted.
        StoreError: there is no output, it cannot be read or has another layout.
    """
    if store.is_local and Path(store.uri).is_file():
        raise StoreError(f"{store.uri} is a file: give the folder of a run, its --output")
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"{store.uri}: there is no output here; check the path")
    return _record_of(store, MANIFEST, manifest) if manifest else None


def completed_run(store: ObjectStore) -> RunRecord:
    """The last completed run, which the exports are of.

    Raises:
        StoreError: no run has completed, or as for `last_completed`.
    """
    run = last_completed(store)
    if run is None:
        raise StoreError(
            f"{store.uri}: no run has completed here yet; finish the run first: call "
            "`prefect-imageqa run ...` again"
        )
    return run


def read_runs(
    store: ObjectStore,
    on_corrupted: Callable[[ObjectCorruptedError], None] | None = None,
    exclude: Collection[str] = (),
) -> list[RunRecord]:
    """Read the records of all runs of an output, oldest first.

    `on_corrupted` is called for each corrupted record, which is skipped; by default it is an error.

    Raises:
        ObjectCorruptedError: a record is corrupted, and there is no `on_corrupted`.
    """

    def read(name: str) -> RunRecord | None:
        try:
            return read_run(store, name)
        except ObjectMissingError:
            return None  # removed since it was listed, by a run that refused to wait
        except ObjectCorruptedError as error:
            if on_corrupted is None:
                raise
            on_corrupted(error)
            return None

    names = [name for name in store.list(RUNS) if name.endswith(".json") and name not in exclude]
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        runs = [run for run in pool.map(read, names) if run is not None]
    return sorted(runs, key=lambda run: (run.started, run.updated, run.is_completed))


def read_run(store: ObjectStore, name: str) -> RunRecord:
    """Read the record of a run.

    Raises:
        ObjectCorruptedError: the record is corrupted.
        ObjectMissingError: there is no such record.
    """
    try:
        content = json.loads(store.read(name, MAX_METADATA_BYTES))
    except (ValueError, RecursionError):
        raise _invalid(store, name, "not JSON") from None
    return _record_of(store, name, content)


def unfinished_runs(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Of all runs, oldest first, those in progress and those that still have to be finished.

    A later run of the same configuration and dataset finishes an earlier one. A run that failed
    before it found its model has left nothing to finish.
    """
    runs = list(runs)
    newest = {run.keys: run for run in runs}
    return [
        run
        for run in runs
        if not run.is_completed
        and not run.dropped
        and (run.is_live or (run.keys and newest[run.keys] is run))
    ]


def _record_of(store: ObjectStore, name: str, content: Any) -> RunRecord:
    try:
        record = RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "content"
        what = " ".join(str(first["msg"]).split())
        raise _invalid(store, name, f"{where}: {what}") from None
    # These parameters of a run can also be objects, but a record contains their names.
    parameters = record.parameters
    names = (parameters.dataset, parameters.style, parameters.parsing.parser)
    if not all(isinstance(value, str) for value in names):
        raise _invalid(store, name, "parameters: a name is not a string")
    return record


def _invalid(store: ObjectStore, name: str, reason: str) -> ObjectCorruptedError:
    return ObjectCorruptedError(f"{store.uri_of(name)} is not a run record ({reason}): delete it")
