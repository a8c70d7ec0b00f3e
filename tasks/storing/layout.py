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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..prompting.keys import KEY_LENGTH

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


def parser_labels(store: ObjectStore, folder: PassFolder) -> set[str]:
    """The labels of all configurations of a parser that a pass has rows of."""
    parts = f"{folder.all_parts}/"
    inside = (name.removeprefix(parts) for name in store.list(folder.all_parts))
    return {name.partition("/")[0] for name in inside if name.count("/") == 1}


def batch_of(name: str) -> str | None:
    """The batch that a part is of; empty for a merged one, None for what is not ours."""
    own = _OWN_NAME.fullmatch(name.rsplit("/", 1)[-1])
    return None if own is None else own[1] or ""


def part_name(folder: str, batch_key: str, data: bytes) -> str:
    """What a part of one batch is called; its name digests its content."""
    return f"{folder}/{batch_key}-{hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]}{PART_SUFFIX}"


def earlier_keys(name: str) -> str:
    """What the row keys are called that earlier runs of a dataset had besides."""
    return f"{name}.before"


def merged_name(folder: str, digest: str) -> str:
    """What a part merged from others is called."""
    return f"{folder}/merged-{digest}{PART_SUFFIX}"
