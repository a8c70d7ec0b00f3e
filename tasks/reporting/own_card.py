"""Writes the dataset card of an output, unless there is a README.md of somebody else.

A card ends with a digest of itself, in a comment that no renderer shows. So a card that somebody
has edited is somebody's own, also in a copy of the output.
"""

import hashlib
import logging

from ..errors import ObjectMissingError
from ..object_store.store import ObjectStore
from .dataset_card import CARD

_LOGGER = logging.getLogger("prefect_imageqa.reporting")

_MAX_BYTES = 1 << 20
"""A longer file is not a card of ours."""

_MARK = b"\n<!-- written by prefect-imageqa, and replaced by its next run unless changed: %s -->\n"


def write_card(store: ObjectStore, text: str) -> None:
    """Write the card, or log why it is not written.

    Raises:
        StoreError: the output cannot be read or written.
    """
    try:
        with store.open(CARD) as file:
            is_own = is_own_card(file.read(_MAX_BYTES))
    except ObjectMissingError:
        is_own = True
    if is_own:
        store.write(CARD, _marked(text.encode("utf-8", "replace")))  # may have lone surrogates
    else:
        _LOGGER.warning(
            "%s is not as a run has written it, and stays as it is: remove it to get a dataset "
            "card, for example with `prefect-imageqa report`",
            store.uri_of(CARD),
        )


def is_own_card(card: bytes) -> bool:
    """Whether a run has written this card, and nobody has changed it since."""
    text, begin, _ = card.rpartition(_MARK.partition(b"%s")[0])
    return bool(begin) and card == _marked(text)


def _marked(text: bytes) -> bytes:
    return text + _MARK % hashlib.sha256(text).hexdigest().encode()
