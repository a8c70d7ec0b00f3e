"""The record of a run in its output: what it was told, how far it is, what came of it.

`runs/<id>.json` is written while the run goes on, and by its end; `manifest.json` repeats that of
the run which completed last. One class writes and reads them.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..concurrency import STORE_THREADS
from ..errors import ObjectCorruptedError, ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..storing.layout import MANIFEST, RUNS, read_manifest, run_name, write_manifest
from .parameters import RunParameters

ACTIVE_RUNS: set[str] = set()
"""Ids of the runs of this process; one that could not record its end is not among them."""

ALIVE_SECONDS = 60
"""A run has a heartbeat every 10 s; one that was silent for longer was killed, or is stuck."""


class RunCounts(BaseModel):
    """What became of the rows of a run, so far or in all: `rows = ok + filtered + quarantined`.

    Attributes:
        rows: rows of the dataset that are finished.
        ok: rows with an answer, old or new.
        filtered: rows whose answer was checked and left out.
        quarantined: rows that could not be answered.
        reused: ok rows whose answer was stored before this run.
        asked: rows that this run asked, or answered from stored completions.
        retried: rows among them that an earlier run had quarantined.
        pairs: QA pairs of the ok rows.
        requests: requests sent to the model, repeated ones included.
        prompt_tokens: tokens the model read.
        completion_tokens: tokens the model wrote.
        seconds: the flow's own work, without the start-up of Prefect and vLLM.
        reasons: quarantined rows by kind; empty while the run goes on.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    ok: int = 0
    filtered: int = 0
    quarantined: int = 0
    reused: int = 0
    asked: int = 0
    retried: int = 0
    pairs: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    reasons: Mapping[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_conservation(self) -> Self:
        if self.rows != self.ok + self.filtered + self.quarantined:
            raise ValueError(
                f"{self.rows} rows are not {self.ok} ok, {self.filtered} filtered and "
                f"{self.quarantined} quarantined"
            )
        return self


_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]*$", max_length=255)]
"""What stands in messages as it is: a planted record must not steer a terminal."""


class RunRecord(BaseModel):
    """What an output keeps of a run.

    Attributes:
        run: its id.
        state: how it ended; one that was killed is still "running", or "waiting" for another.
        dataset: short name of its dataset.
        model: the served model's name; empty until the server is found, as are `configuration`
            and `keys`.
        model_revision: tells its versions apart; may be empty.
        user_prompt: what was asked where a row has no conversation.
        parser: label of the parser's configuration.
        configuration: digest of all that decides its answers.
        keys: what the row keys of its configuration and dataset are kept under.
        host: name of the machine it runs on.
        machine: tells that machine, and its processes, from all others.
        process: tells its process from all others of the machine.
        queued: when it began to wait for its turn to write.
        started: when its turn came.
        updated: its last heartbeat.
        total: rows of the dataset, where that is known.
        counts: how far it was then, or what came of it.
        error: why it was not completed.
        dropped: nobody will finish it: its rows were cleaned away.
        versions: of the packages that matter.
        told: its parameters.
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
    error: str = ""
    dropped: bool = False
    versions: Mapping[str, str]
    parameters: RunParameters

    @property
    def is_completed(self) -> bool:
        """Whether all rows of the dataset were finished."""
        return self.state == "completed"

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, (datetime.now(UTC) - self.updated).total_seconds())

    @property
    def is_live(self) -> bool:
        """Whether it is at work now, or waits for another: its process is there, its heart beats.

        Of a process on another machine only the heartbeat can be seen.
        """
        if self.state not in ("running", "waiting"):
            return False
        if self.machine == this_machine():
            if self.process != _process(self.process):
                return False
            if self.process == _process(str(os.getpid())) and self.run not in ACTIVE_RUNS:
                return False
        # Of a record from the future no heartbeat is known, either.
        age = abs((datetime.now(UTC) - self.updated).total_seconds())
        return age <= ALIVE_SECONDS

    def write(self, store: ObjectStore) -> None:
        """Store the record."""
        # Not pydantic's own JSON: it refuses the name of a file that is not UTF-8.
        content = json.dumps(self.model_dump(mode="json"), indent=2)
        store.write(run_name(self.run), content.encode())


def this_host() -> Mapping[str, str]:
    """What tells this process from those of all machines: fields of a `RunRecord`."""
    return {
        "host": socket.gethostname(),
        "machine": this_machine(),
        "process": _process(str(os.getpid())),
    }


@cache
def this_machine() -> str:
    """Names this machine since it booted, and the container whose processes can be seen."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    processes = Path("/proc/self/ns/pid")
    try:
        told = f"{boot.read_text()} {processes.readlink()}"
    except OSError:
        told = f"{socket.gethostname()} {os.getpid()}"  # nothing is known of other processes
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _process(named: str) -> str:
    """Names the process of an id, alone or as this function gave it; empty if it is gone.

    An id is used again one day: the start of its process tells.
    """
    pid = named.partition("-")[0]
    try:
        # Field 22 of proc(5); the second one, in brackets, may hold anything.
        told = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}-{told[19]}"
    except (OSError, ValueError, IndexError):
        return ""


def complete_run(store: ObjectStore, record: RunRecord) -> None:
    """Store the record of a completed run, and that the output is in its state."""
    record.write(store)
    write_manifest(store, record.model_dump(mode="json"))


def last_completed(store: ObjectStore) -> RunRecord | None:
    """The run that an output's exports are of; None where none has completed.

    Raises:
        ObjectCorruptedError: the manifest does not hold what was written.
        StoreError: there is no output, it cannot be read or has another layout.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"{store.uri}: there is no output here; check the path")
    return _record_of(store, MANIFEST, manifest) if manifest else None


def completed_run(store: ObjectStore) -> RunRecord:
    """The run that an output's exports are of.

    Raises:
        StoreError: as `last_completed` does, or no run has completed.
    """
    run = last_completed(store)
    if run is None:
        raise StoreError(
            f"{store.uri}: no run has completed here yet; the same command goes on from where "
            "it stopped"
        )
    return run


def read_runs(
    store: ObjectStore,
    pass_over: Callable[[ObjectCorruptedError], None] | None = None,
    without: Collection[str] = (),
) -> list[RunRecord]:
    """All runs of an output, oldest first.

    A record that does not hold what was written is told to `pass_over` if that is given.

    Raises:
        ObjectCorruptedError: a record does not hold what was written.
    """

    def read(name: str) -> RunRecord | None:
        try:
            return read_run(store, name)
        except ObjectMissingError:
            return None  # a run that did not wait has taken it away
        except ObjectCorruptedError as error:
            if pass_over is None:
                raise
            pass_over(error)
            return None

    names = [name for name in store.list(RUNS) if name.endswith(".json") and name not in without]
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        runs = [run for run in pool.map(read, names) if run is not None]
    return sorted(runs, key=lambda run: (run.started, run.updated, run.is_completed))


def read_run(store: ObjectStore, name: str) -> RunRecord:
    """The run that a record tells of.

    Raises:
        ObjectCorruptedError: the record does not hold what was written.
    """
    try:
        content = json.loads(store.read(name))
    except (ValueError, RecursionError):
        raise _no_run(store, name, "no JSON") from None
    return _record_of(store, name, content)


def unfinished_runs(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Of all runs, oldest first, those that go on now, and those that nobody has finished yet.

    A run is finished by a later one of the same configuration and dataset. One that failed before
    it found its model has left nothing to finish.
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
        raise _no_run(store, name, f"{where}: {what}") from None
    # A run is told these also as objects; what is stored has their names.
    told = record.parameters
    named = (told.dataset, told.prompt_style, told.parsing.parser)
    if not all(isinstance(value, str) for value in named):
        raise _no_run(store, name, "told: a name is not a text")
    return record


def _no_run(store: ObjectStore, name: str, reason: str) -> ObjectCorruptedError:
    return ObjectCorruptedError(
        f"{store.uri_of(name)} is not the record of a run ({reason}): delete it"
    )
