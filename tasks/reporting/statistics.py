"""What the plots of a report show: counted over all rows of a run, in memory of a fixed size."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..concurrency import prefetch
from ..exporting.export import PAIRS, WRITES_AGAIN
from ..object_store.store import ObjectStore
from ..runs.records import RunRecord
from ..storing.key_index import Array
from ..storing.parts import ANSWERED_NUMBER, answered_at, open_part, reported_corruption
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows

CENTISECONDS = 100
"""Latencies are counted in hundredths of a second."""

_LARGEST = 65_535
"""Larger values are counted as this one: a tally takes at most 0.5 MB."""

_MOST_WORDS = 10_000
"""First words of questions that are counted apart; then only the most common ones stay."""

_FIRST_WORD = r"^[^\pL\pN]*(?P<word>[\pL\pN]{1,20})"
_COLUMNS = ["prompt_tokens", "completion_tokens", "latency"]
_PAIRS_AT_ONCE = 65_536
_READERS = 4


class Tally:
    """How often each whole number from 0 up was seen."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(0, np.int64)

    def add(self, values: Array) -> None:
        """Count some numbers."""
        numbers = np.clip(values, 0, _LARGEST).astype(np.int64)
        counts = np.bincount(numbers, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    @property
    def sum(self) -> int:
        """Their sum."""
        return int(self.counts @ np.arange(len(self.counts)))

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all does not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.total))


@dataclass
class Statistics:
    """Of the answered rows of a run.

    Attributes:
        questions: lengths in characters.
        answers: lengths in characters.
        first_words: of the questions, in lower case.
        prompt_tokens: of each row.
        completion_tokens: of each row.
        latencies: of each row, in hundredths of a second.
        written: when each row that this run asked was stored, in seconds since its start.
    """

    questions: Tally = field(default_factory=Tally)
    answers: Tally = field(default_factory=Tally)
    first_words: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Tally = field(default_factory=Tally)
    completion_tokens: Tally = field(default_factory=Tally)
    latencies: Tally = field(default_factory=Tally)
    written: Array = field(default_factory=lambda: np.empty(0))


def gather(store: ObjectStore, run: RunRecord, stored: StoredRows) -> Statistics:
    """Count over the answered rows of a completed run."""
    found = Statistics()
    _add_pairs(store, found)
    rows = stored.index.find(read_keys(store, run.keys))
    places = rows.places[rows.known & (rows.places["kind"] == ANSWERED_NUMBER)]
    started, ended = run.started.timestamp(), run.updated.timestamp()
    seconds = answered_at(places["rank"]) / 1000 - started
    found.written = np.sort(seconds[(seconds >= 0) & (seconds <= ended - started + 1)])
    for table in _answer_tables(store, stored, places):
        found.prompt_tokens.add(table.column("prompt_tokens").to_numpy())
        found.completion_tokens.add(table.column("completion_tokens").to_numpy())
        found.latencies.add(table.column("latency").to_numpy() * CENTISECONDS)
    return found


def _add_pairs(store: ObjectStore, found: Statistics) -> None:
    with reported_corruption(store, PAIRS, WRITES_AGAIN), store.open(PAIRS) as source:
        file = pq.ParquetFile(pa.PythonFile(source, mode="r"), pre_buffer=True)
        for piece in file.iter_batches(_PAIRS_AT_ONCE, columns=["question", "answer"]):
            questions, answers = piece.column("question"), piece.column("answer")
            found.questions.add(pc.utf8_length(questions).to_numpy(zero_copy_only=False))
            found.answers.add(pc.utf8_length(answers).to_numpy(zero_copy_only=False))
            words = pc.utf8_lower(pc.extract_regex(questions, _FIRST_WORD).field("word"))
            for counted in pc.value_counts(words).to_pylist():
                if counted["values"]:
                    found.first_words[counted["values"]] += counted["counts"]
            if len(found.first_words) > _MOST_WORDS:
                found.first_words = Counter(dict(found.first_words.most_common(_MOST_WORDS // 2)))


def _answer_tables(store: ObjectStore, stored: StoredRows, places: Array) -> Iterator[pa.Table]:
    """Tokens and latencies of the rows at these places, part by part."""
    order = np.argsort(places["file"], kind="stable")
    files, starts = np.unique(places["file"][order], return_index=True)
    rows = np.split(places["row"][order], starts)[1:]  # before the first start is nothing

    def read(part: tuple[int, Array]) -> pa.Table:
        file, wanted = part
        name = stored.names[file]
        with reported_corruption(store, name), store.open(name) as source:
            opened = open_part(pa.PythonFile(source, mode="r"))
            table = opened.read(columns=_COLUMNS, use_threads=False).take(wanted)
            numbers = [table.column(column).to_numpy() for column in _COLUMNS]
            if not all(np.isfinite(column).all() for column in numbers):
                raise ValueError("an answer without its numbers")
            return table

    with ThreadPoolExecutor(_READERS) as pool:
        parts = zip(files.tolist(), rows, strict=True)
        for _, table in prefetch(pool, read, parts, _READERS):
            yield table.result()
