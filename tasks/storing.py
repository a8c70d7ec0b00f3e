"""The layout of an output: only this module knows what its objects are called.

parts/<parse>/<batch-key>-<digest>.parquet     answered rows of a batch, as one configuration
                                               of the parser read them
parts/<parse>/merged-<digest>.parquet          answered rows of many batches
quarantine/<parse>/...jsonl                    rows that could not be answered, likewise; `+part`
                                               in a name: the batch is not whole without its part
keys/<configuration>/<dataset>                 row keys of a dataset's last run
keys/<configuration>/<dataset>.before          row keys that earlier runs had besides
runs/<id>.json                                 the record of each run
manifest.json                                  the layout's version and the present state

The digest is of the content: an object is written once and never changed. So several objects can
hold the same row; what counts then is told in `ledger.py`.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from prefect import task

from .caching import KEY_LENGTH
from .errors import StoreError
from .filesystems import ObjectMissingError
from .key_index import KEY, Array, pack_keys
from .object_store import ObjectStore
from .parsing import ParsedBatch
from .parts import DAMAGE, answers_table, part_writer, quarantine_lines
from .records import Answered, Batch, Quarantined
from .steps import STEP

LAYOUT_VERSION = 2
"""Raised when objects of an output are named or shaped differently."""

COMPLETIONS = "completions"
PARTS = "parts"
QUARANTINE = "quarantine"
KEYS = "keys"
RUNS = "runs"
MANIFEST = "manifest.json"

_DIGEST_LENGTH = 8
_PART = "+part"
_BEFORE = ".before"
_OWN_NAME = re.compile(
    rf"(?:([0-9a-f]{{{KEY_LENGTH}}})-[0-9a-f]{{{_DIGEST_LENGTH}}}|merged-[0-9a-f]+)"
    rf"(?:\.parquet|(?:{re.escape(_PART)})?\.jsonl)"
)


class ObjectDamagedError(StoreError):
    """An object does not hold what was written."""


def open_output(store: ObjectStore) -> None:
    """Make sure that an output is of this layout; an empty one becomes so.

    Raises:
        StoreError: the output was written with another layout, or cannot be read or written.
    """
    if read_manifest(store) is None:
        # At once: the next version must know what a killed run left.
        write_manifest(store, {})


def read_manifest(store: ObjectStore) -> Mapping[str, Any] | None:
    """Read the description of the output's present state; None where there is no output.

    Raises:
        StoreError: the output was written with another layout, or cannot be read.
    """
    try:
        manifest: Mapping[str, Any] = json.loads(store.read(MANIFEST))
        version = manifest.get("layout_version")
    except ObjectMissingError:
        return None
    except (ValueError, AttributeError, RecursionError):
        raise StoreError(f"{store.uri_of(MANIFEST)} is not a manifest of this program") from None
    if version != LAYOUT_VERSION:
        raise StoreError(
            f"{store.uri_of(MANIFEST)} has layout {version}, this version writes {LAYOUT_VERSION}: "
            "use another output, or the version that wrote it"
        )
    return manifest


def write_manifest(store: ObjectStore, manifest: Mapping[str, Any]) -> None:
    """Replace the description of the output's present state."""
    store.write(MANIFEST, _described(manifest))


def write_run(store: ObjectStore, run_id: str, record: Mapping[str, Any]) -> None:
    """Store the record of a run."""
    store.write(f"{RUNS}/{run_id}.json", _described(record))


def write_batch(
    store: ObjectStore,
    parse: str,
    batch_key: str,
    rows: Sequence[Answered | Quarantined],
    written: float | None = None,
) -> list[str]:
    """Store a finished batch: its answers as a part, the others in quarantine.

    Args:
        store: the output.
        parse: the label of the parser's configuration.
        batch_key: names the batch.
        rows: its rows; no key stands there twice.
        written: decides between two answers to one row, in seconds since 1970 (UTC); by default
            now. The later one counts.

    Returns:
        The names of the objects written.

    Raises:
        StoreError: the output cannot be written.
    """
    answered, quarantined = split_rows(rows)
    names = []
    if quarantined:
        data = b"\n".join(quarantine_lines(quarantined)) + b"\n"
        mark = _PART if answered else ""
        name = f"{QUARANTINE}/{parse}/{batch_key}-{_digest(data)}{mark}.jsonl"
        store.write(name, data)
        names.append(name)
    if answered:
        sink = BytesIO()
        with part_writer(sink) as writer:
            writer.write_table(answers_table(answered, milliseconds(written)))
        data = sink.getvalue()
        name = f"{PARTS}/{parse}/{batch_key}-{_digest(data)}.parquet"
        store.write(name, data)
        names.append(name)
    return names


@task(name="store", task_run_name="store-{batch}", **STEP)
def store_batch(batch: Batch, parsed: ParsedBatch, store: ObjectStore, parse: str) -> list[str]:
    """Store a parsed batch; see `write_batch`."""
    return write_batch(store, parse, batch.key, parsed.rows, parsed.time)


def parse_labels(store: ObjectStore) -> set[str]:
    """The labels of all configurations of a parser that have rows in an output."""
    names = [*store.list(PARTS), *store.list(QUARANTINE)]
    return {name.split("/")[1] for name in names if name.count("/") == 2}


def write_keys(store: ObjectStore, run: str, keys: Sequence[str]) -> None:
    """Keep the row keys of a run in dataset order, 16 bytes each, in place of those before.

    Keys that are in the dataset no more are kept beside them: their answers are paid for, and may
    be wanted again.

    Args:
        store: the output.
        run: `<configuration>/<dataset>`.
        keys: the row keys.

    Raises:
        StoreError: the output cannot be read or written.
    """
    packed = pack_keys(keys)
    last, older = (_stored_keys(store, name) for name in (run, f"{run}{_BEFORE}"))
    if not np.array_equal(packed[: len(last)], last):  # a dataset that has only grown loses none
        gone = np.setdiff1d(np.concatenate([last, older]), packed)
        store.write(f"{KEYS}/{run}{_BEFORE}", gone.tobytes())
    store.write(f"{KEYS}/{run}", packed.tobytes())


def _stored_keys(store: ObjectStore, run: str) -> Array:
    try:
        return read_keys(store, run)
    except (ObjectMissingError, ObjectDamagedError):
        return np.empty(0, KEY)


def read_keys(store: ObjectStore, run: str) -> Array:
    """Read what `write_keys` kept, an array of `KEY`.

    Raises:
        ObjectMissingError: no such run has come so far.
        StoreError: the keys are damaged, or cannot be read.
    """
    name = f"{KEYS}/{run}"
    packed = store.read(name)
    if len(packed) % KEY.itemsize:
        raise ObjectDamagedError(f"{store.uri_of(name)} is damaged: delete it and run again")
    return np.frombuffer(packed, KEY)


def batch_of(name: str) -> str | None:
    """The batch that an object is of; empty for a merged one, None for what is not ours."""
    own = _OWN_NAME.fullmatch(name.rsplit("/", 1)[-1])
    return None if own is None else own[1] or ""


def needs_part(name: str) -> bool:
    """Whether the batch of an object is finished only if it also has a part."""
    return name.endswith(f"{_PART}.jsonl")


def merged_name(folder: str, digest: str, suffix: str) -> str:
    """What an object merged from others is called."""
    return f"{folder}/merged-{digest}{suffix}"


def split_rows(
    rows: Sequence[Answered | Quarantined],
) -> tuple[list[Answered], list[Quarantined]]:
    """Answered and quarantined rows, each in the order in which `write_batch` stores them."""
    answered = [row for row in rows if isinstance(row, Answered)]
    return answered, [row for row in rows if isinstance(row, Quarantined)]


def milliseconds(written: float | None) -> int:
    """A time as it is stored; by default now."""
    return round((time.time() if written is None else written) * 1000)


@contextmanager
def damage_named(store: ObjectStore, name: str) -> Iterator[None]:
    """Say which object is damaged, and what to do, where it does not hold what was written."""
    try:
        yield
    except DAMAGE as error:
        raise ObjectDamagedError(
            f"{store.uri_of(name)} is damaged ({type(error).__name__}): delete it, and run again"
        ) from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]


def _described(content: Mapping[str, Any]) -> bytes:
    text = json.dumps({"layout_version": LAYOUT_VERSION, **content}, indent=2, sort_keys=True)
    return text.encode()
