"""What the checks of an output have cost: the replies that are stored, and what they took."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..object_store.store import ObjectStore
from ..storing.layout import CHECKS, PassFolder, check_folders, parser_labels
from ..storing.parts import ANSWERED_NUMBER
from ..storing.stored_rows import StoredRows
from .statistics import answer_tables


@dataclass(frozen=True)
class CheckCost:
    """The cost of a check.

    Attributes:
        check: its name.
        asked: requests whose outcome is stored; retries are not counted.
        failed: those of them that failed.
        prompt_tokens: that the model read for the others.
        completion_tokens: that it generated.
        seconds: from each of these requests to its reply, added up: many are sent at a time.
    """

    check: str
    asked: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def check_costs(store: ObjectStore) -> Iterator[CheckCost]:
    """The costs of the checks that ask the model, of all runs of an output together.

    Raises:
        ObjectCorruptedError: a part is corrupted.
        StoreError: the output cannot be read.
    """
    names = store.list(CHECKS)
    for folder in check_folders(names):
        yield _cost(store, folder, parser_labels(names, folder))


def _cost(store: ObjectStore, folder: PassFolder, labels: Iterable[str]) -> CheckCost:
    of_labels = [StoredRows(store, folder.parts(label)) for label in labels]
    for rows in of_labels:
        rows.sync()
    check = folder.name.partition("/")[2]
    # A newer parser has read the same replies anew.
    stored = max(of_labels, key=lambda rows: len(rows.index), default=None)
    if stored is None:
        return CheckCost(check)
    _, locations = stored.index.entries()
    answered = locations[locations["kind"] == ANSWERED_NUMBER]
    prompt_tokens = completion_tokens = 0
    seconds = 0.0
    for table in answer_tables(store, stored, answered):
        prompt_tokens += int(table.column("prompt_tokens").to_numpy().sum())
        completion_tokens += int(table.column("completion_tokens").to_numpy().sum())
        seconds += float(table.column("latency").to_numpy().sum())
    failed = len(locations) - len(answered)
    return CheckCost(check, len(locations), failed, prompt_tokens, completion_tokens, seconds)
