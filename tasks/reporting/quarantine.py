"""The quarantined rows of an output in groups: those with the same reason, and how many."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..exporting.export import REWRITE_REMEDY
from ..exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..object_store.store import ObjectStore
from ..storing.parts import reported_corruption

_MAX_GROUPS = 1000
"""Further groups are counted by kind only: a hostile server could make one of every row."""

_MAX_EXAMPLES = 3
_MAX_MESSAGE = 500

_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\d[\d.,]*")
"""What differs between messages of the same kind: names in quotes, paths, URLs and numbers."""


@dataclass
class QuarantineGroup:
    """Rows that are quarantined for the same reason.

    Attributes:
        kind: the reason.
        message: that of the first row; empty for rows of several other messages.
        rows: how many there are.
        examples: locations of the first ones in the dataset.
    """

    kind: str
    message: str
    rows: int = 0
    examples: list[str] = field(default_factory=list)


def quarantine_groups(store: ObjectStore) -> Sequence[QuarantineGroup]:
    """Group the quarantined rows by reason and by message, the largest group first.

    Messages that differ only in names and numbers are the same.

    Raises:
        ObjectCorruptedError: `quarantine.jsonl` is corrupted.
    """
    groups: dict[tuple[str, str], QuarantineGroup] = {}
    with reported_corruption(store, QUARANTINE_JSONL, REWRITE_REMEDY):
        for line in store.lines(QUARANTINE_JSONL):
            record = json.loads(line)
            kind, message = str(record["kind"]), str(record["message"])[:_MAX_MESSAGE]
            shape = kind, _VARIABLE.sub("…", message)
            if shape not in groups and len(groups) >= _MAX_GROUPS:
                shape, message = (kind, ""), ""
            group = groups.setdefault(shape, QuarantineGroup(kind, message))
            group.rows += 1
            if len(group.examples) < _MAX_EXAMPLES:
                group.examples.append(str(record["where"]))
    return sorted(groups.values(), key=lambda group: (-group.rows, group.kind, group.message))
