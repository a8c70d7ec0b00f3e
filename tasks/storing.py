"""The layout of an output: only this module knows what its objects are called.

<pass>/completions/<batch-key>                 raw replies to a batch
<pass>/parts/<parser>/<batch-key>-<digest>.parquet
                                               its rows, answered or failed, as one configuration
                                               of the parser read them
<pass>/parts/<parser>/merged-<digest>.parquet  rows of many batches
<pass>/keys/<configuration>/<dataset>          row keys of a dataset's last run
<pass>/keys/<configuration>/<dataset>.before   row keys that earlier runs had besides
runs/<id>.json                                 the record of each run
manifest.json                                  the layout's version and the last completed run

The digest is of the content: an object is written once and never changed. So several objects can
hold the same row; which of them counts is told in `ledger.py`.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from prefect import task

from .caching import KEY_LENGTH
from .errors import ObjectDamagedError, ObjectMissingError, StoreError
from .key_index import KEY, Array, pack_keys
from .object_store import ObjectStore
from .parsing import ParsedBatch
from .parts import DAMAGE, part_writer, rows_table
from .records import Batch, FinishedRow
from .steps import STEP

LAYOUT_VERSION = 3
"""Raised when objects of an output are named or shaped differently."""

PAIRS = "pairs"
"""The pass over the dataset's own rows."""

COMPLETIONS = "completions"
PARTS = "parts"
KEYS = "keys"
RUNS = "runs"
MANIFEST = "manifest.json"

PART_SUFFIX = ".parquet"

_DIGEST_LENGTH = 8
_BEFORE = ".before"
_OWN_NAME = re.compile(
    rf"(?:([0-9a-f]{{{KEY_LENGTH}}})-[0-9a-f]{{{_DIGEST_LENGTH}}}|merged-[0-9a-f]+)"
    rf"{re.escape(PART_SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class PassFolder:
    """Where in an output a pass keeps its objects.

    Attributes:
        name: of the pass: what all names begin with.
    """

    name: str = PAIRS

    @property
    def completions(self) -> str:
        """Folder of the raw replies."""
        return f"{self.name}/{COMPLETIONS}"

    @property
    def keys(self) -> str:
        """Folder of the row keys."""
        return f"{self.name}/{KEYS}"

    @property
    def all_parts(self) -> str:
        """Folder of the parts of all parsers."""
        return f"{self.name}/{PARTS}"

    def parts(self, parser: str) -> str:
        """Folder of the parts of one configuration of the parser, named by its label."""
        return f"{self.all_parts}/{parser}"


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
        manifest: dict[str, Any] = json.loads(store.read(MANIFEST))
        version = manifest.pop("layout_version", None)
    except ObjectMissingError:
        return None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise StoreError(f"{store.uri_of(MANIFEST)} is not a manifest of this program") from None
    if version != LAYOUT_VERSION:
        raise StoreError(
            f"{store.uri_of(MANIFEST)} has layout {version}, this version writes {LAYOUT_VERSION}: "
            "use another output, or the version that wrote it"
        )
    return manifest


def write_manifest(store: ObjectStore, manifest: Mapping[str, Any]) -> None:
    """Replace the description of the output's present state."""
    described = {"layout_version": LAYOUT_VERSION, **manifest}
    store.write(MANIFEST, json.dumps(described, indent=2, sort_keys=True).encode())


def run_name(run_id: str) -> str:
    """What the record of a run is called."""
    return f"{RUNS}/{run_id}.json"


def write_part(
    store: ObjectStore,
    folder: str,
    batch_key: str,
    rows: Sequence[FinishedRow],
    written: float | None = None,
) -> str:
    """Store the answered and failed rows of a finished batch as one object; returns its name.

    No key stands there twice. Of two answers to one row the later counts, by when they were
    written, in seconds since 1970 (UTC), by default now.
    """
    sink = BytesIO()
    with part_writer(sink) as writer:
        writer.write_table(rows_table(rows, milliseconds(written)))
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]
    name = f"{folder}/{batch_key}-{digest}{PART_SUFFIX}"
    store.write(name, data)
    return name


@dataclass(frozen=True)
class StoredBatch:
    """A batch that is finished.

    Attributes:
        part: name of its part.
        parsed: its rows.
    """

    part: str
    parsed: ParsedBatch


@task(name="store", task_run_name="store-{batch}", **STEP)
def store_batch(batch: Batch, parsed: ParsedBatch, store: ObjectStore, folder: str) -> StoredBatch:
    """Store a parsed batch; see `write_part`."""
    part = write_part(store, folder, batch.key, parsed.rows, parsed.time)
    return StoredBatch(part, parsed)


def parser_labels(store: ObjectStore, folder: PassFolder) -> set[str]:
    """The labels of all configurations of a parser that a pass has rows of."""
    parts = f"{folder.all_parts}/"
    inside = (name.removeprefix(parts) for name in store.list(folder.all_parts))
    return {name.partition("/")[0] for name in inside if name.count("/") == 1}


def write_keys(store: ObjectStore, name: str, keys: Sequence[str]) -> None:
    """Keep the row keys of a run in dataset order, 16 bytes each, in place of those before.

    The name is `<folder of keys>/<configuration>/<dataset>`. Keys that are in the dataset no more
    are kept beside them: their answers are paid for, and may be wanted again.
    """
    packed = pack_keys(keys)
    last, older = (_stored_keys(store, old) for old in (name, f"{name}{_BEFORE}"))
    if not np.array_equal(packed[: len(last)], last):  # a dataset that has only grown loses none
        gone = np.setdiff1d(np.concatenate([last, older]), packed)
        store.write(f"{name}{_BEFORE}", gone.tobytes())
    store.write(name, packed.tobytes())


def _stored_keys(store: ObjectStore, name: str) -> Array:
    try:
        return read_keys(store, name)
    except (ObjectMissingError, ObjectDamagedError):
        return np.empty(0, KEY)


def read_keys(store: ObjectStore, name: str) -> Array:
    """Read what `write_keys` kept, an array of `KEY`.

    Raises:
        ObjectMissingError: no such run has come so far.
        StoreError: the keys are damaged, or cannot be read.
    """
    packed = store.read(name)
    if len(packed) % KEY.itemsize:
        raise ObjectDamagedError(f"{store.uri_of(name)} is damaged: delete it and run again")
    return np.frombuffer(packed, KEY)


def batch_of(name: str) -> str | None:
    """The batch that a part is of; empty for a merged one, None for what is not ours."""
    own = _OWN_NAME.fullmatch(name.rsplit("/", 1)[-1])
    return None if own is None else own[1] or ""


def merged_name(folder: str, digest: str) -> str:
    """What a part merged from others is called."""
    return f"{folder}/merged-{digest}{PART_SUFFIX}"


def milliseconds(written: float | None) -> int:
    """A time as it is stored; by default now."""
    return round((time.time() if written is None else written) * 1000)


@contextmanager
def damage_named(
    store: ObjectStore, name: str, remedy: str = "delete it, and run again"
) -> Iterator[None]:
    """Say which object is damaged, and what to do, where it does not hold what was written."""
    try:
        yield
    except DAMAGE as error:
        raise ObjectDamagedError(
            f"{store.uri_of(name)} is damaged ({type(error).__name__}): {remedy}"
        ) from None
