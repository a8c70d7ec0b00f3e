"""Where an output stands: its runs, also those that go on just now, and what is stored."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from .errors import StoreError
from .exporting import PAIRS, QA_JSON, QA_JSONL, QUARANTINE_JSONL
from .ledger import Ledger, LedgerCounts
from .object_store import ObjectStore
from .steps import READERS
from .storing import (
    COMPLETIONS,
    KEYS,
    MANIFEST,
    PARTS,
    QUARANTINE,
    RUNS,
    ObjectDamagedError,
    read_manifest,
)

ALIVE_SECONDS = 60
"""A run gives a sign of life every 10 s; one that was silent for longer was killed, or is stuck."""

EXPORTS = (QA_JSONL, QA_JSON, PAIRS, QUARANTINE_JSONL)


class RunCounts(BaseModel):
    """Rows of a completed run by what became of them; `reasons` has the quarantined by kind."""

    model_config = ConfigDict(frozen=True)

    rows: int
    ok: int
    filtered: int
    quarantined: int
    pairs: int
    reasons: Mapping[str, int] = {}


class RunSteps(BaseModel):
    """How far a run is, in rows; `total` may not be known."""

    model_config = ConfigDict(frozen=True)

    total: int | None = None
    reused: int
    ok: int
    quarantined: int


class Run(BaseModel):
    """What an output keeps of a run.

    Attributes:
        run: its id.
        state: how it ended; one that was killed is still "running".
        dataset: short name of its dataset.
        model: the served model's name.
        parser: label of the parser's configuration.
        configuration: digest of all that decides its answers.
        keys: what the row keys of its configuration and dataset are kept under.
        started: when.
        updated: its last sign of life.
        progress: how far it was then.
        summary: what came of it, if it was completed.
        error: why it was not.
        entering: it has not begun yet, and `started` is not final.
        dropped: nobody will finish it: its rows were cleaned away.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    state: Literal["running", "failed", "interrupted", "completed"]
    dataset: str
    model: str
    parser: str
    configuration: str
    keys: str
    started: AwareDatetime
    updated: AwareDatetime
    progress: RunSteps
    summary: RunCounts | None = None
    error: str = ""
    entering: bool = False
    dropped: bool = False

    @model_validator(mode="after")
    def _check_summary(self) -> Self:
        if self.is_completed and self.summary is None:
            raise ValueError("completed without a summary")
        return self

    @property
    def is_completed(self) -> bool:
        """Whether all rows of the dataset were finished."""
        return self.state == "completed"

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, (datetime.now(UTC) - self.updated).total_seconds())

    @property
    def is_going(self) -> bool:
        """Whether it seems to be at work now."""
        return self.state == "running" and self.silent_seconds <= ALIVE_SECONDS


@dataclass(frozen=True)
class Objects:
    """How many objects, and their bytes together."""

    count: int
    bytes: int


@dataclass(frozen=True)
class OutputStatus:
    """Where an output stands.

    Attributes:
        last: the last completed run.
        unfinished: the others that count, see `unfinished_runs`.
        stored: rows that are stored, by label of the parser's configuration; of those that the
            runs above have.
        unparsed: stored completions that none of these configurations has parsed.
        objects: what there is, by kind.
    """

    last: Run | None
    unfinished: Sequence[Run]
    stored: Mapping[str, LedgerCounts]
    unparsed: int
    objects: Mapping[str, Objects]


def output_status(store: ObjectStore) -> OutputStatus | None:
    """Tell where an output stands; None where there is none yet.

    Raises:
        StoreError: it cannot be read, is damaged or has another layout.
    """
    manifest = read_manifest(store)
    if manifest is None:
        return None
    last = last_completed(store, manifest)
    unfinished = unfinished_runs(read_runs(store))
    labels = dict.fromkeys(run.parser for run in [*unfinished, *([last] if last else [])])
    ledgers = {label: Ledger.read(store, label) for label in labels}
    sizes = store.sizes()
    parsed: set[str] = set().union(*(ledger.batches for ledger in ledgers.values()))
    completions = {name.removeprefix(f"{COMPLETIONS}/") for name in in_folder(sizes, COMPLETIONS)}
    return OutputStatus(
        last,
        unfinished,
        {label: ledger.counts() for label, ledger in ledgers.items()},
        len(completions - parsed),
        _by_kind(sizes),
    )


def require_output(store: ObjectStore) -> Mapping[str, Any]:
    """The manifest of an output that must be there.

    Raises:
        StoreError: there is no output, it cannot be read or has another layout.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise StoreError(f"{store.uri}: there is no output here; check the path")
    return manifest


def last_completed(store: ObjectStore, manifest: Mapping[str, Any]) -> Run | None:
    """The run that an output's manifest tells of.

    Raises:
        ObjectDamagedError: the manifest does not hold what was written.
    """
    if manifest.keys() <= {"layout_version"}:
        return None
    try:
        return Run.model_validate(manifest)
    except ValidationError as error:
        raise _no_run(store, MANIFEST, error) from None


def read_runs(store: ObjectStore) -> list[Run]:
    """All runs of an output, oldest first.

    Raises:
        ObjectDamagedError: a record does not hold what was written.
        StoreError: they cannot be read.
    """
    names = [name for name in store.list(RUNS) if name.endswith(".json")]
    with ThreadPoolExecutor(READERS) as pool:
        runs = list(pool.map(lambda name: read_run(store, name), names))
    return sorted(runs, key=lambda run: (run.started, run.updated, run.is_completed))


def read_run(store: ObjectStore, name: str) -> Run:
    """The run that a record tells of.

    Raises:
        ObjectDamagedError: the record does not hold what was written.
        StoreError: it cannot be read.
    """
    try:
        return Run.model_validate_json(store.read(name))
    except ValidationError as error:
        raise _no_run(store, name, error) from None


def unfinished_runs(runs: Iterable[Run]) -> list[Run]:
    """Runs that go on now, and those that nobody has finished yet.

    A run is finished by a later one of the same configuration and dataset.

    Args:
        runs: all runs, oldest first.
    """
    runs = list(runs)
    newest = {run.keys: run for run in runs}
    return [
        run
        for run in runs
        if not run.is_completed and not run.dropped and (run.is_going or newest[run.keys] is run)
    ]


def in_folder(names: Iterable[str], folder: str) -> list[str]:
    """The objects of a folder, among others."""
    return [name for name in names if name.startswith(f"{folder}/")]


def _by_kind(sizes: Mapping[str, int]) -> dict[str, Objects]:
    kinds: dict[str, list[int]] = {
        kind: [] for kind in (COMPLETIONS, PARTS, QUARANTINE, KEYS, RUNS, "exports", "other")
    }
    for name, size in sizes.items():
        folder, slash, _ = name.partition("/")
        kind = folder if slash else "exports" if name in EXPORTS else ""
        kinds.get(kind, kinds["other"]).append(size)
    return {kind: Objects(len(found), sum(found)) for kind, found in kinds.items() if found}


def _no_run(store: ObjectStore, name: str, error: ValidationError) -> ObjectDamagedError:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"]) or "content"
    what = " ".join(str(first["msg"]).split())
    return ObjectDamagedError(
        f"{store.uri_of(name)} is not the record of a run ({where}: {what}): delete it"
    )
