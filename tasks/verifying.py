"""Whether everything that the last completed run left is there, once, and can be read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from .batch_cache import check_completions
from .caching import KEY_LENGTH
from .completions import CompletionsDamagedError
from .export_checks import ExportedRows
from .faults import RUN_AGAIN, Fault, Faults
from .filesystems import ObjectMissingError
from .key_index import KEY, PLACE, Array, KeyIndex, pack_keys
from .object_store import ObjectStore
from .outputs import Run, in_folder, last_completed, read_run, require_output
from .parts import answers_contents, failure_of, open_part, quarantine_contents
from .result_records import RecordDamagedError, RecordRefusedError
from .steps import READERS, ahead
from .storing import (
    COMPLETIONS,
    KEYS,
    MANIFEST,
    PARTS,
    QUARANTINE,
    RUNS,
    ObjectDamagedError,
    batch_of,
    damage_named,
    read_keys,
)
