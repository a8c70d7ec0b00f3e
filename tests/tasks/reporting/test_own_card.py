"""Whose a dataset card is, on a real store."""

import logging

import pytest
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.reporting.own_card import write_card


def test_an_unchanged_card_is_replaced(store: ObjectStore) -> None:
    for text in ("first\n", "second \ud800"):
        write_card(store, text)
    card = store.read("README.md").decode()
    assert card.startswith("second ?\n<!-- written by prefect-imageqa")
    assert card.endswith(" -->\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ours", b"mine"),
        (b"-->", b"-->\n\nMore about it."),
        (b"\n", b"\r\n"),
        (b"ours", b"mine" * 300_000),
    ],
    ids=["edited", "appended to", "line ends", "large"],
)
def test_a_changed_card_is_kept(
    old: bytes, new: bytes, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(store, "ours")
    changed = store.read("README.md").replace(old, new)
    store.write("README.md", changed)
    with caplog.at_level(logging.WARNING):
        write_card(store, "new")
    assert store.read("README.md") == changed
    assert caplog.messages[-1].startswith(f"{store.uri_of('README.md')} is not as a run")


@pytest.mark.parametrize("text", [b"", b"# My photos", b"<!-- written by prefect-imageqa -->"])
def test_a_card_of_somebody_else_is_kept(text: bytes, local: ObjectStore) -> None:
    local.write("README.md", text)
    write_card(local, "ours")
    assert local.read("README.md") == text
