"""The layout of an output: the names of its objects are defined here and nowhere else.

<pass>/completions/<batch-key>                 raw replies to a batch
<pass>/parts/<parser>/<batch-key>-<digest>.parquet
                                               the batch's rows, answered or quarantined, as read by
                                               one configuration of the parser
<pass>/parts/<parser>/merged-<digest>.parquet  rows of many batches
<pass>/keys/<configuration>/<dataset>          row keys of the last run on a dataset
<pass>/keys/<configuration>/<dataset>.before   other row keys, which earlier runs on it had
pairs/exported.json                            what the exports were made from, to tell if they are
                                               still right
checks/answered.parquet                        all pairs, before unanswerable ones are added to them
checks/pairs.parquet, judged.parquet           all pairs, before and after the checks if there are
                                               any
checks/judged.json, split.json                 what the judged and the kept pairs were made from
runs/<id>.json                                 the record of each run
workers/<run>-<start>/<worker>/...             what a run and its workers exchange; gone at its end
manifest.json                                  the layout version and the last completed run

A pass is `pairs`, `answers`, or `checks/<name>` for each check that asks the model.

The digest is of the content: an object is written once and never changed. Several parts can
therefore hold the same row; `ledger.py` says which copy counts.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..prompting.keys import KEY_LENGTH

LAYOUT_VERSION = 5
"""Increased when the names or the format of objects in an output change."""

PAIRS = "pairs"
"""The pass over the dataset's own rows."""

ANSWERS = "answers"
"""The pass over the questions of the first one, if they are answered separately."""

CHECKS = "checks"
"""Folder of the checks: each that asks the model is a pass over the pairs of the first one."""

COMPLETIONS = "completions"
PARTS = "parts"
KEYS = "keys"
RUNS = "runs"
WORKERS = "workers"
"""Folder of what runs and their workers exchange, by run."""
EXPORTED = f"{PAIRS}/exported.json"
ANSWERED_PAIRS = f"{CHECKS}/answered.parquet"
ALL_PAIRS = f"{CHECKS}/pairs.parquet"
JUDGED = f"{CHECKS}/judged.parquet"
JUDGED_RECORD = f"{CHECKS}/judged.json"
SPLIT = f"{CHECKS}/split.json"
FILTERED = "filtered.parquet"
"""The judged pairs that are not kept; those that are kept are in `pairs.parquet`."""
MANIFEST = "manifest.json"

MAX_METADATA_BYTES = 16 << 20
"""Size of a manifest or a run record; ours have some kilobytes, and the user's prompts."""

PART_SUFFIX = ".parquet"

_DIGEST_LENGTH = 8
_PART_NAME = re.compile(
    rf"(?:([0-9a-f]{{{KEY_LENGTH}}})-[0-9a-f]{{{_DIGEST_LENGTH}}}|merged-[0-9a-f]+)"
    rf"{re.escape(PART_SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class PassFolder:
    """The folders of an output in which a pass stores its objects.

    Attributes:
        name: name of the pass, which is the first folder of all its objects.
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

    def keys_of(self, name: str) -> str:
        """Name of the row keys that belong to those of another pass."""
        return f"{self.name}/{name.partition('/')[2]}"

    @property
    def all_parts(self) -> str:
        """Folder of the parts of all parsers."""
        return f"{self.name}/{PARTS}"

    def parts(self, parser: str) -> str:
        """Folder of the parts of one parser configuration, given by its label."""
        return f"{self.all_parts}/{parser}"


def open_output(store: ObjectStore) -> None:
    """Check that an output has this layout; an empty one is marked with it.

    Raises:
        StoreError: the output was written with another layout, or cannot be read or written.
    """
    if read_manifest(store) is None:
        # Before anything else: a later version must recognise what a killed run left behind.
        write_manifest(store, {})


def read_manifest(store: ObjectStore) -> Mapping[str, Any] | None:
    """Read the manifest, without the layout version; None if there is no output.

    Raises:
        StoreError: the output was written with another layout, or cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads(store.read(MANIFEST, MAX_METADATA_BYTES))
        version = manifest.pop("layout_version", None)
    except ObjectMissingError:
        return None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise StoreError(f"{store.uri_of(MANIFEST)} is not a prefect-imageqa manifest") from None
    if version != LAYOUT_VERSION:
        raise StoreError(
            f"{store.uri_of(MANIFEST)} has layout {version}, this version writes {LAYOUT_VERSION}: "
            "use another output, or the version that wrote it"
        )
    return manifest


def write_manifest(store: ObjectStore, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest; the layout version is added."""
    content = {"layout_version": LAYOUT_VERSION, **manifest}
    store.write(MANIFEST, json.dumps(content, indent=2, sort_keys=True).encode())


def run_name(run_id: str) -> str:
    """Name of a run's record."""
    return f"{RUNS}/{run_id}.json"


@dataclass(frozen=True, slots=True)
class WorkerFolder:
    """What a run and one of its workers exchange.

    Attributes:
        crew: the run, and which of its starts.
        worker: name of the worker.
    """

    crew: str
    worker: str

    @property
    def name(self) -> str:
        """The folder."""
        return f"{WORKERS}/{self.crew}/{self.worker}"

    @property
    def status(self) -> str:
        """Name of what the worker says of itself."""
        return f"{self.name}/status"

    @property
    def end(self) -> str:
        """Name of the object that tells the worker to end."""
        return f"{self.name}/end"

    def batch(self, number: int) -> str:
        """Name of a batch that the worker is to answer."""
        return f"{self.name}/batch-{number}"

    def result(self, number: int) -> str:
        """Name of what became of a batch."""
        return f"{self.name}/result-{number}"


_MESSAGE = re.compile(rf"{WORKERS}/[A-Za-z0-9-]+/[0-9]+/(?:status|end|batch-[0-9]+|result-[0-9]+)")


def is_message(name: str) -> bool:
    """Whether a run and a worker of it may have exchanged an object of this name."""
    return _MESSAGE.fullmatch(name) is not None


def check_name(check: str) -> str:
    """Name of the pass of a check."""
    return f"{CHECKS}/{check}"


def check_folders(names: Iterable[str]) -> list[PassFolder]:
    """The folders of the checks that have any of these objects."""
    kinds = {COMPLETIONS, PARTS, KEYS}
    split = (name.split("/", 3) for name in names)
    found = {
        steps[1] for steps in split if len(steps) == 4 and steps[0] == CHECKS and steps[2] in kinds
    }
    return [PassFolder(check_name(check)) for check in sorted(found)]


def parser_labels(names: Iterable[str], folder: PassFolder) -> set[str]:
    """Labels of all parser configurations that a pass has parts of, of the objects of an output."""
    parts = f"{folder.all_parts}/"
    inside = (name.removeprefix(parts) for name in names if name.startswith(parts))
    return {name.partition("/")[0] for name in inside if name.count("/") == 1}


def batch_of(name: str) -> str | None:
    """Key of the batch a part belongs to; empty for a merged part, None if it is not a part."""
    match = _PART_NAME.fullmatch(name.rsplit("/", 1)[-1])
    return None if match is None else match[1] or ""


def part_name(folder: str, batch_key: str, data: bytes) -> str:
    """Name of the part of a single batch, with a digest of its content."""
    return f"{folder}/{batch_key}-{hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]}{PART_SUFFIX}"


def earlier_keys(name: str) -> str:
    """Name of the row keys that only earlier runs on the dataset had."""
    return f"{name}.before"


def merged_name(folder: str, digest: str) -> str:
    """Name of a merged part."""
    return f"{folder}/merged-{digest}{PART_SUFFIX}"
