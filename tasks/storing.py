"""The layout of an output: parts, quarantine, ledger, manifest. Only this module knows it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from .errors import StoreError
from .object_store import ObjectStore
from .parsing import ParseSettings
from .parsing_text import PARSER_VERSION
from .records import TRANSIENT, Answered, Batch, Kind, QAPair, Quarantined
from .steps import STEP

LAYOUT_VERSION = 1
"""Raised when objects of an output are named or shaped differently."""

PARTS = "parts"
QUARANTINE = "quarantine"
RUNS = "runs"
MANIFEST = "manifest.json"

_PAIR = pa.struct([("question", pa.string()), ("answer", pa.string())])
_ANSWER = pa.struct(
    [
        ("text", pa.string()),
        ("pairs", pa.list_(_PAIR)),
        ("model", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("latency", pa.float64()),
        ("parser", pa.string()),
        ("parser_version", pa.int64()),
    ]
)
PART_SCHEMA = pa.schema([("key", pa.string()), ("answer", _ANSWER)])


class RowStatus(Enum):
    """Where a row stands in the ledger."""

    PENDING = "to be asked now"
    ASKED = "stood in the dataset before, and is asked in this run"
    ANSWERED = "answered by an earlier run"
    FAILED = "failed in an earlier run, for a reason that asking again does not change"


class Ledger:
    """Which rows are finished, and which failed before; read from what is stored.

    Keeps a key and the number of a file per row (about 200 bytes in all), never an answer.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._files: list[str] = []
        self._answers: dict[bytes, int] = {}
        self._failures: dict[bytes, int] = {}
        self._lasting: set[bytes] = set()
        self._attempts: Counter[bytes] = Counter()
        self._claimed: set[bytes] = set()
        self._load = lru_cache(maxsize=16)(self._load_file)

    @classmethod
    def read(cls, store: ObjectStore) -> "Ledger":
        """Read the ledger of an output; an empty or missing output gives an empty one.

        Raises:
            StoreError: the output cannot be read, or was written with another layout.
        """
        _check_layout(store)
        ledger = cls(store)
        for name in store.list(PARTS):
            if name.endswith(".parquet"):
                with _damage_named(store, name):
                    ledger._add_part(name, _part_keys(store, name))
        for name in store.list(QUARANTINE):
            if name.endswith(".jsonl"):
                with _damage_named(store, name):
                    failed = {row["key"]: Kind(row["kind"]) for row in _read_lines(store, name)}
                    ledger._add_quarantine(name, failed)
        return ledger

    def status(self, key: str) -> RowStatus:
        """Where a row stands; one that is pending is claimed by this call."""
        digest = bytes.fromhex(key)
        if digest in self._claimed:
            return RowStatus.ASKED
        if digest in self._answers:
            return RowStatus.ANSWERED
        if digest in self._lasting:
            return RowStatus.FAILED
        self._claimed.add(digest)
        return RowStatus.PENDING

    def attempts(self, key: str) -> int:
        """How many times the row was quarantined before."""
        return self._attempts[bytes.fromhex(key)]

    def answer(self, key: str) -> Answered | None:
        """The stored answer of a row."""
        row = self._find(self._answers, key)
        if row is None:
            return None
        with _damage_named(self._store, self._files[self._answers[bytes.fromhex(key)]]):
            answer = row["answer"]
            return Answered(
                key=key,
                text=answer["text"],
                pairs=tuple(QAPair(pair["question"], pair["answer"]) for pair in answer["pairs"]),
                model=answer["model"],
                prompt_tokens=answer["prompt_tokens"],
                completion_tokens=answer["completion_tokens"],
                latency=answer["latency"],
            )

    def failure(self, key: str) -> Quarantined | None:
        """Why a row could not be answered, as its latest attempt tells."""
        row = self._find(self._failures, key)
        if row is None:
            return None
        with _damage_named(self._store, self._files[self._failures[bytes.fromhex(key)]]):
            return Quarantined(**{**row, "kind": Kind(row["kind"])})

    def add(self, batch_key: str, rows: Sequence[Answered | Quarantined]) -> None:
        """Take in what `write_batch` has just stored."""
        answered, quarantined = _split(rows)
        if answered:
            self._add_part(f"{PARTS}/{batch_key}.parquet", [row.key for row in answered])
        if quarantined:
            failed = {row.key: row.kind for row in quarantined}
            self._add_quarantine(f"{QUARANTINE}/{batch_key}.jsonl", failed)

    def _add_part(self, name: str, keys: Sequence[str]) -> None:
        self._files.append(name)
        self._answers.update(dict.fromkeys(map(bytes.fromhex, keys), len(self._files) - 1))

    def _add_quarantine(self, name: str, failed: Mapping[str, Kind]) -> None:
        self._files.append(name)
        for key, kind in failed.items():
            digest = bytes.fromhex(key)
            self._failures[digest] = len(self._files) - 1
            self._attempts[digest] += 1
            if kind not in TRANSIENT:
                self._lasting.add(digest)

    def _find(self, places: Mapping[bytes, int], key: str) -> dict[str, Any] | None:
        place = places.get(bytes.fromhex(key))
        if place is None:
            return None
        with _damage_named(self._store, self._files[place]):
            row = self._load(place).get(key)
        if row is None:
            # Another run on this output wrote the same batch meanwhile, with another outcome.
            raise StoreError(
                f"{self._store.uri_of(self._files[place])} was replaced meanwhile: run it again"
            )
        return row

    def _load_file(self, number: int) -> dict[str, dict[str, Any]]:
        name = self._files[number]
        if name.startswith(PARTS):
            rows = _read_part(self._store, name, None).to_pylist()
        else:
            rows = list(_read_lines(self._store, name))
        return {row["key"]: row for row in rows}


def write_batch(
    store: ObjectStore,
    batch_key: str,
    rows: Sequence[Answered | Quarantined],
    parser: str,
) -> None:
    """Store a finished batch: its answers as a part, the others in quarantine.

    Raises:
        StoreError: the output cannot be written.
    """
    answered, quarantined = _split(rows)
    if quarantined:
        lines = [json.dumps(asdict(row), ensure_ascii=True) for row in quarantined]
        store.write(f"{QUARANTINE}/{batch_key}.jsonl", ("\n".join(lines) + "\n").encode())
    if answered:
        parsed_by = {"parser": parser, "parser_version": PARSER_VERSION}
        table = pa.Table.from_pylist(
            [{"key": row.key, "answer": _answer_struct(row) | parsed_by} for row in answered],
            schema=PART_SCHEMA,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        store.write(f"{PARTS}/{batch_key}.parquet", sink.getvalue().to_pybytes())


@task(name="store", task_run_name="store-{batch}", **STEP)
def store_batch(
    batch: Batch,
    rows: list[Answered | Quarantined],
    store: ObjectStore,
    parsed_by: ParseSettings,
) -> list[Answered | Quarantined]:
    """Store a parsed batch; see `write_batch`. Returns its rows."""
    write_batch(store, batch.key, rows, parsed_by.name)
    return rows


def write_manifest(store: ObjectStore, run_id: str, manifest: Mapping[str, Any]) -> None:
    """Store the record of a run, and as `manifest.json` the output's present state."""
    text = json.dumps({"layout_version": LAYOUT_VERSION, **manifest}, indent=2, sort_keys=True)
    store.write(f"{RUNS}/{run_id}.json", text.encode())
    store.write(MANIFEST, text.encode())


def _check_layout(store: ObjectStore) -> None:
    if not store.exists(MANIFEST):
        return
    try:
        version = json.loads(store.read(MANIFEST)).get("layout_version")
    except (ValueError, AttributeError):
        raise StoreError(f"{store.uri_of(MANIFEST)} is not a manifest of this program") from None
    if version != LAYOUT_VERSION:
        raise StoreError(
            f"{store.uri_of(MANIFEST)} has layout {version}, this version writes {LAYOUT_VERSION}: "
            "use another output, or the version that wrote it"
        )


def _answer_struct(row: Answered) -> dict[str, Any]:
    return {
        "text": _utf8(row.text),
        "pairs": [
            {"question": _utf8(pair.question), "answer": _utf8(pair.answer)} for pair in row.pairs
        ],
        "model": row.model,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "latency": row.latency,
    }


def _utf8(text: str) -> str:
    """Arrow refuses half a surrogate pair, which JSON replies can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _split(
    rows: Sequence[Answered | Quarantined],
) -> tuple[list[Answered], list[Quarantined]]:
    answered = [row for row in rows if isinstance(row, Answered)]
    return answered, [row for row in rows if isinstance(row, Quarantined)]


def _part_keys(store: ObjectStore, name: str) -> list[str]:
    keys: list[str] = _read_part(store, name, ["key"]).column("key").to_pylist()
    return keys


def _read_part(store: ObjectStore, name: str, columns: list[str] | None) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read(name)), columns=columns)


def _read_lines(store: ObjectStore, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(name).splitlines()]


@contextmanager
def _damage_named(store: ObjectStore, name: str) -> Iterator[None]:
    """Say which object is damaged, and what to do, where it does not hold what was written."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(
            f"{store.uri_of(name)} is damaged ({type(error).__name__}): "
            "delete it, its rows are asked again"
        ) from None
