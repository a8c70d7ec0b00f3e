"""Quarantined rows in groups."""

import json

import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError
from prefect_imageqa.tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.reporting import quarantine
from prefect_imageqa.tasks.reporting.quarantine import QuarantineGroup, quarantine_groups


def write(store: ObjectStore, *failures: tuple[str, str]) -> None:
    lines = [
        {"row": number, "where": f"d[{number}]", "kind": kind, "message": message}
        for number, (kind, message) in enumerate(failures)
    ]
    store.write(QUARANTINE_JSONL, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def test_messages_that_differ_in_names_and_numbers_are_one_group(local: ObjectStore) -> None:
    missing = "there is no file {} in /data or /srv/{}"
    messages = [("image_missing", missing.format(f"'it, {n}.png'", n)) for n in range(5)]
    large = [("image_too_large", f"{n} x 1,{n}00 pixels, more than 100000") for n in range(2)]
    other = [("timeout", "there is no file 'x' in /data or /srv")]
    write(local, *large, *messages, *other)
    assert quarantine_groups(local) == [
        QuarantineGroup("image_missing", messages[0][1], 5, ["d[2]", "d[3]", "d[4]"]),
        QuarantineGroup("image_too_large", large[0][1], 2, ["d[0]", "d[1]"]),
        QuarantineGroup("timeout", other[0][1], 1, ["d[7]"]),
    ]


def test_the_number_of_groups_is_bounded(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_MAX_GROUPS", 2)
    write(local, *(("empty", message) for message in ("a", "b", "c", "d", "b")))
    assert [(group.message, group.rows) for group in quarantine_groups(local)] == [
        *(("", 2), ("b", 2), ("a", 1))
    ]


@pytest.mark.parametrize("content", [b"{", b"[]\n", b"{}\n"])
def test_a_corrupted_quarantine_is_reported(content: bytes, local: ObjectStore) -> None:
    local.write(QUARANTINE_JSONL, content)
    with pytest.raises(ObjectCorruptedError, match=r"quarantine\.jsonl is corrupted"):
        quarantine_groups(local)
