"""The numbers that a report plots: counted over all rows of a run, in constant memory."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..concurrency import prefetch
from ..exporting.bounded_parquet import bounded_batches
from ..exporting.export import REWRITE_REMEDY
from ..exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA
from ..object_store.store import ObjectStore
from ..runs.run_record import RunRecord
from ..storing.key_index import Array
from ..storing.parts import ANSWERED_NUMBER, answered_at, open_part, reported_corruption
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows

CENTISECONDS = 100
"""Per second: latencies are counted in hundredths of a second."""

_MAX_VALUE = 65_535
"""Larger values are counted as this one, so a tally takes at most 0.5 MB."""

_MAX_WORDS = 10_000
"""Distinct first words, styles or types that are counted."""

_FIRST_WORD = r"^[^\pL\pN]*(?P<word>[\pL\pN]+)"
_MAX_WORD = 20
"""Characters of a word that are kept: `{1,20}` in the expression takes 20 ms to compile."""

_COLUMNS = ["prompt_tokens", "completion_tokens", "latency"]
_PAIRS_PER_READ = 65_536
_READERS = 4


class Tally:
    """A histogram of non-negative integers."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(0, np.int64)

    def add(self, values: Array) -> None:
        """Count some values."""
        clipped = np.clip(values, 0, _MAX_VALUE).astype(np.int64)
        counts = np.bincount(clipped, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def sum(self) -> int:
        """The sum of the values."""
        return int(self.counts @ np.arange(len(self.counts)))

    def quantile(self, share: float) -> int:
        """The smallest value that at least this share of the values does not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.total))


@dataclass
class Statistics:
    """Statistics of the answered rows of a run.

    Attributes:
        questions: lengths in characters.
        answers: lengths in characters.
        first_words: of the questions, in lower case.
        styles: of the pairs; of those that have one.
        types: of the pairs; of those that have one.
        prompt_tokens: per row.
        completion_tokens: per row.
        latencies: per row, in hundredths of a second.
        stored_seconds: when this run stored each of its new rows, in seconds since its start;
            sorted.
        duplicates: rows of the dataset that are like an earlier one, and share its outcome.
    """

    questions: Tally = field(default_factory=Tally)
    answers: Tally = field(default_factory=Tally)
    first_words: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Tally = field(default_factory=Tally)
    completion_tokens: Tally = field(default_factory=Tally)
    latencies: Tally = field(default_factory=Tally)
    stored_seconds: Array = field(default_factory=lambda: np.empty(0))
    duplicates: int = 0


def compute_statistics(store: ObjectStore, run: RunRecord, stored: StoredRows) -> Statistics:
    """Compute the statistics of a completed run."""
    statistics = Statistics()
    _add_pairs(store, statistics)
    keys = read_keys(store, run.keys)
    statistics.duplicates = len(keys) - len(np.unique(keys))
    rows = stored.index.find(keys)
    locations = rows.locations[rows.known & (rows.locations["kind"] == ANSWERED_NUMBER)]
    started, ended = run.started.timestamp(), run.updated.timestamp()
    seconds = answered_at(locations["rank"]) / 1000 - started
    statistics.stored_seconds = np.sort(seconds[(seconds >= 0) & (seconds <= ended - started + 1)])
    for table in answer_tables(store, stored, locations):
        statistics.prompt_tokens.add(table.column("prompt_tokens").to_numpy())
        statistics.completion_tokens.add(table.column("completion_tokens").to_numpy())
        statistics.latencies.add(table.column("latency").to_numpy() * CENTISECONDS)
    return statistics


def _add_pairs(store: ObjectStore, statistics: Statistics) -> None:
    columns = ["question", "answer", "type", "style"]
    with reported_corruption(store, PAIRS, REWRITE_REMEDY):
        for pairs in bounded_batches(store, PAIRS, PAIRS_SCHEMA, columns, _PAIRS_PER_READ):
            questions, answers = pairs.column("question"), pairs.column("answer")
            for tally, texts in ((statistics.questions, questions), (statistics.answers, answers)):
                tally.add(pc.utf8_length(texts.drop_null()).to_numpy(zero_copy_only=False))
            words = pc.extract_regex(questions, _FIRST_WORD).field("word")
            words = pc.utf8_lower(pc.utf8_slice_codeunits(words, 0, _MAX_WORD))
            _count(statistics.first_words, words)
            _count(statistics.styles, pairs.column("style"))
            _count(statistics.types, pairs.column("type"))


def _count(counter: Counter[str], values: pa.Array) -> None:
    """Count the values that are not empty; of too many, the rarer half is dropped."""
    for value in pc.value_counts(values).to_pylist():
        if value["values"]:
            counter[value["values"]] += value["counts"]
    if len(counter) > _MAX_WORDS:
        for word, _ in counter.most_common()[_MAX_WORDS // 2 :]:
            del counter[word]


def answer_tables(store: ObjectStore, stored: StoredRows, locations: Array) -> Iterator[pa.Table]:
    """Tokens and latencies of the rows at these locations, part by part."""
    order = np.argsort(locations["file"], kind="stable")
    files, starts = np.unique(locations["file"][order], return_index=True)
    rows = np.split(locations["row"][order], starts)[1:]  # the piece before the first is empty

    def read(part: tuple[int, Array]) -> pa.Table:
        file, row_numbers = part
        name = stored.names[file]
        with reported_corruption(store, name), store.open(name) as source:
            opened = open_part(pa.PythonFile(source, mode="r"))
            table = opened.read(columns=_COLUMNS, use_threads=False).take(row_numbers)
            numbers = [table.column(column).to_numpy() for column in _COLUMNS]
            if not all(np.isfinite(column).all() for column in numbers):
                raise ValueError("token counts or latencies are missing")
            return table

    with ThreadPoolExecutor(_READERS) as pool:
        parts = zip(files.tolist(), rows, strict=True)
        for _, table in prefetch(pool, read, parts, _READERS):
            yield table.result()
