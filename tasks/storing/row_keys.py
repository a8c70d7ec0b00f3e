"""The row keys of a dataset, in dataset order, as stored at the end of a run."""

from collections.abc import Sequence

import numpy as np

from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from .key_index import KEY, Array, pack_keys
from .layout import earlier_keys


def write_keys(store: ObjectStore, name: str, keys: Sequence[str]) -> None:
    """Replace the row keys of a dataset by those of this run, 16 bytes each.

    Keys that are no longer in the dataset are stored in a second object: their answers are paid
    for, and may be needed again.
    """
    packed = pack_keys(keys)
    last, older = (_stored_keys(store, old) for old in (name, earlier_keys(name)))
    if not np.array_equal(packed[: len(last)], last):  # a dataset that only grew loses no keys
        removed = np.setdiff1d(np.concatenate([last, older]), packed)
        store.write(earlier_keys(name), removed.tobytes())
    store.write(name, packed.tobytes())


def _stored_keys(store: ObjectStore, name: str) -> Array:
    try:
        return read_keys(store, name)
    except (ObjectMissingError, ObjectCorruptedError):
        return np.empty(0, KEY)


def read_keys(store: ObjectStore, name: str) -> Array:
    """Read the row keys that `write_keys` stored, as an array of `KEY`.

    Raises:
        ObjectMissingError: no run of this configuration and dataset got as far as storing them.
        StoreError: the keys are corrupted, or cannot be read.
    """
    packed = store.read(name)
    if len(packed) % KEY.itemsize:
        raise ObjectCorruptedError(f"{store.uri_of(name)} is corrupted: delete it and run again")
    return np.frombuffer(packed, KEY)
