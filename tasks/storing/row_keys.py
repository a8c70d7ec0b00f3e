"""The row keys of a dataset, kept in dataset order between runs."""

from collections.abc import Sequence

import numpy as np

from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from .key_index import KEY, Array, pack_keys
from .layout import earlier_keys


def write_keys(store: ObjectStore, name: str, keys: Sequence[str]) -> None:
    """Keep the row keys of a run in dataset order, 16 bytes each, in place of those before.

    The name is `<folder of keys>/<configuration>/<dataset>`. Keys that are in the dataset no more
    are kept beside them: their answers are paid for, and may be wanted again.
    """
    packed = pack_keys(keys)
    last, older = (_stored_keys(store, old) for old in (name, earlier_keys(name)))
    if not np.array_equal(packed[: len(last)], last):  # a dataset that has only grown loses none
        gone = np.setdiff1d(np.concatenate([last, older]), packed)
        store.write(earlier_keys(name), gone.tobytes())
    store.write(name, packed.tobytes())


def _stored_keys(store: ObjectStore, name: str) -> Array:
    try:
        return read_keys(store, name)
    except (ObjectMissingError, ObjectCorruptedError):
        return np.empty(0, KEY)


def read_keys(store: ObjectStore, name: str) -> Array:
    """Read what `write_keys` kept, an array of `KEY`.

    Raises:
        ObjectMissingError: no such run has come so far.
        StoreError: the keys are corrupted, or cannot be read.
    """
    packed = store.read(name)
    if len(packed) % KEY.itemsize:
        raise ObjectCorruptedError(f"{store.uri_of(name)} is corrupted: delete it and run again")
    return np.frombuffer(packed, KEY)
