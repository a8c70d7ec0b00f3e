"""The folder of an export: which of its files are ours, to be replaced and removed."""

import hashlib
import re
from collections.abc import Callable, Mapping

from ....serving.printable import printable
from ...errors import StoreError
from ...object_store.store import ObjectStore
from .export_record import MAX_RECORD_BYTES, OWN_NAME, RECORD, ExportRecord, read_record
from .formats import FORMATS
from .images import IMAGES

_DATA = "data"
"""Folder of the files of formats that have them in one."""

_EXTRAS = ("README.md", "dataset_info.json")

_MAX_COPY_BYTES = 256 << 20


def check_folder(store: ObjectStore) -> bool:
    """Refuse a folder with files that no export has written, or that somebody has changed since.

    Of an export that was killed, the sizes of its files with conversations are not known: by their
    names alone they are taken for its own. Copies of images are not listed: there can be millions.

    Returns:
        Whether there is an earlier export; else the folder is empty.

    Raises:
        StoreError: there is such a file; or the folder cannot be read.
    """
    record = read_record(store)
    if record is None:
        if sizes := store.sizes():
            first = printable(min(sizes), 300)
            raise StoreError(
                f"{store.uri} has files that no export has written, such as {first}: choose "
                "another folder"
            )
        return False
    sizes = store.sizes(deep=False) | store.sizes(_DATA, deep=False)
    extras = FORMATS[record.format].extras(record)
    replaced = [name for name in sizes if _is_replaced(name)]
    foreign = [name for name in replaced if not _is_ours(store, name, sizes[name], record, extras)]
    if foreign:
        raise StoreError(
            f"{store.uri_of(foreign[0])} is not as an export has written it, and would be "
            "replaced: move it away, or choose another folder"
        )
    return True


def _is_ours(
    store: ObjectStore, name: str, size: int, record: ExportRecord, extras: Mapping[str, bytes]
) -> bool:
    if name in _EXTRAS:
        content = extras.get(name)
        return content is not None and store.read(name, MAX_RECORD_BYTES) == content
    if record.state == "complete":
        return record.sizes.get(name) == size
    form = FORMATS[record.format]
    names = rf"{form.folder}(?:train|validation)(?:-\d+)?{re.escape(form.suffix)}"
    return re.fullmatch(names, name) is not None


def remove_extras(store: ObjectStore) -> None:
    """Remove the files beside the records of an export that has been checked.

    They are written last: what a killed export leaves of them is known by its record, too.
    """
    for name in _EXTRAS:
        if store.exists(name):
            store.remove(name)


def remove_others(store: ObjectStore, record: ExportRecord, is_copy: Callable[[str], bool]) -> None:
    """Remove files of earlier exports in the folder that the last one does not have."""
    known = {RECORD, *record.files}
    for name, size in store.sizes().items():
        if _is_replaced(name):
            if name not in known:
                store.remove(name)
        elif OWN_NAME.fullmatch(name) and not is_copy(name) and _is_content(store, name, size):
            store.remove(name)


def _is_replaced(name: str) -> bool:
    return bool(OWN_NAME.fullmatch(name)) and not name.startswith(f"{IMAGES}/")


def _is_content(store: ObjectStore, name: str, size: int) -> bool:
    """Whether an image is named by its content, as copies are, and not just like one."""
    if size > _MAX_COPY_BYTES:
        return False
    digest = hashlib.sha256(store.read(name, _MAX_COPY_BYTES)).hexdigest()
    return name.startswith(f"{IMAGES}/{digest}.")
