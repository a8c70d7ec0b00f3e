"""Evaluates the pairs of an output: what they are, what the checks say, and what is right.

Pure functions over tables of pairs that are read in batches. In memory are a few bytes a pair: the
digest of its question, its place if it is filtered, and its scores.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, compress
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DatasetError
from ..exporting.distinct_pairs import normal_form
from ..exporting.pairs_parquet import later_checks
from ..object_store.store import ObjectStore
from ..storing.key_index import Array
from .check_columns import ResultColumn, as_numbers, result_columns
from .detection import Detection, auc, detect
from .evaluation import Agreement, CheckCounts, Evaluation
from .judged_pairs import (
    MAX_TEXTS,
    Filtered,
    add_counts,
    count_texts,
    judged_name,
    read_batches,
    read_filtered,
    read_schema,
)

TruthOf = Callable[[pa.RecordBatch], tuple[Array, Array, Sequence[str]]]
"""Of each pair of a batch with whole rows: whether its truth is known, whether it is right, and
what kind of question it is."""

TRUTH_COLUMNS = ("row", "question", "answer", "type", "options", "turn", "style")
"""Columns that a `TruthOf` may read, besides one of its own."""

_BINS = 10
_QUANTILES = (0.05, 0.5, 0.95)


def evaluate_output(
    store: ObjectStore,
    truth: TruthOf | None = None,
    truth_column: str = "",
    checks: Collection[str] | None = None,
) -> Evaluation:
    """Evaluate the pairs of an output.

    Args:
        store: the output.
        truth: what is known about the pairs.
        truth_column: a column that it reads.
        checks: names of those that were made; by default any that the columns show.

    Raises:
        DatasetError: there is no such column.
        ObjectCorruptedError: a file is corrupted.
        StoreError: a file cannot be read, or there is none.
    """
    name = judged_name(store)
    schema = read_schema(store, name)
    if truth_column and truth_column not in schema.names:
        flags = [column.name for column in schema if pa.types.is_boolean(column.type)]
        known = f": those that are true or false are {', '.join(flags)}" if flags else ""
        raise DatasetError(f"{name} has no column {truth_column!r}{known}")
    columns = bounded_columns(store, result_columns(schema, checks))
    wanted = {"question", "type", "image_digest", *(column.name for column in columns)}
    if truth is not None:
        wanted |= {*TRUTH_COLUMNS, *filter(None, [truth_column])}
    batches, later = read_batches(store, name, sorted(wanted)), later_checks(schema)
    return evaluate(batches, columns, read_filtered(store), truth, later)


def bounded_columns(store: ObjectStore, columns: Sequence[ResultColumn]) -> list[ResultColumn]:
    """The columns with their bounds: those that depend on the pairs are found by reading them."""
    open_names = [column.name for column in columns if column.needs_bound]
    if not open_names:
        return list(columns)
    values: dict[str, list[Array]] = {name: [] for name in open_names}
    for batch in read_batches(store, judged_name(store), open_names):
        for name, parts in values.items():
            numbers = as_numbers(batch.column(name))
            parts.append(numbers[~np.isnan(numbers)])
    return [
        column.bounded(np.concatenate([np.empty(0), *values.get(column.name, ())]))
        for column in columns
    ]


def evaluate(
    batches: Iterable[pa.RecordBatch],
    columns: Sequence[ResultColumn],
    filtered: Filtered | None = None,
    truth: TruthOf | None = None,
    later: Mapping[str, int] = MappingProxyType({}),
) -> Evaluation:
    """Evaluate pairs.

    Args:
        batches: the pairs, with whole rows, and with the columns that are needed.
        columns: results of checks.
        filtered: the pairs that are filtered out.
        truth: what is known about the pairs.
        later: of how many pairs a check was not made, by column.
    """
    counting = _Counting(columns, filtered or Filtered())
    for batch in batches:
        counting.add(batch, truth(batch) if truth else None)
    return counting.result(later)


class _Counting:
    """Counts pairs batch by batch."""

    def __init__(self, columns: Sequence[ResultColumn], filtered: Filtered) -> None:
        self._columns = columns
        self._filtered = filtered
        self._pairs = self._kept = 0
        self._questions: list[Array] = []
        self._images: list[Array] = []
        self._types: Counter[str] = Counter()
        self._checks = [CheckCounts(column) for column in columns]
        self._scores: list[list[Array]] = [[] for _ in columns]
        self._known: list[Array] = []
        self._right: list[Array] = []
        self._filter = Detection()
        self._kinds: dict[str, Detection] = {}
        count = len(columns)
        self._tables = np.zeros((4, count, count), np.int64)

    def add(self, batch: pa.RecordBatch, truth: tuple[Array, Array, Sequence[str]] | None) -> None:
        size = len(batch)
        self._pairs += size
        self._questions.append(_digests(map(normal_form, _texts(batch, "question"))))
        self._images.append(_digests(_texts(batch, "image_digest")))
        types = count_texts(batch.column("type"))
        add_counts(self._types, {name: count for name, count in types.items() if name})
        kept = ~self._filtered.has(batch)
        self._kept += int(np.count_nonzero(kept))
        known, right, kinds = truth or (np.zeros(size, bool), np.zeros(size, bool), ())
        if truth is not None:
            self._known.append(known)
            self._right.append(right)
            self._filter += detect(known, right, kept)
            self._add_kinds(known, right, kept, kinds)
        self._add_checks(batch, known, right)

    def _add_kinds(self, known: Array, right: Array, kept: Array, kinds: Sequence[str]) -> None:
        of_known = compress(kinds, known)
        outcomes = zip(of_known, right[known].tolist(), kept[known].tolist(), strict=True)
        for (kind, is_right, is_kept), count in Counter(outcomes).items():
            if kind not in self._kinds and len(self._kinds) >= MAX_TEXTS:
                continue
            name = f"{'right' if is_right else 'wrong'}_{'passed' if is_kept else 'failed'}"
            before = self._kinds.get(kind, Detection())
            self._kinds[kind] = before + Detection(**{name: count})

    def _add_checks(self, batch: pa.RecordBatch, known: Array, right: Array) -> None:
        judged = np.zeros((len(self._columns), len(batch)), bool)
        passed = judged.copy()
        remaining = np.ones(len(batch), bool)
        for number, column in enumerate(self._columns):
            values = batch.column(column.name)
            judged[number], passed[number] = column.outcomes(values)
            remaining &= passed[number] | ~judged[number]
            before = self._checks[number]
            judged_count, passed_count = map(np.count_nonzero, (judged[number], passed[number]))
            self._checks[number] = replace(
                before,
                passed=before.passed + int(passed_count),
                failed=before.failed + int(judged_count - passed_count),
                unjudged=before.unjudged + len(batch) - int(judged_count),
                so_far=before.so_far + int(np.count_nonzero(remaining)),
                detection=before.detection + detect(known & judged[number], right, passed[number]),
            )
            if column.is_number:
                self._scores[number].append(as_numbers(values).astype(np.float32))
        ones, zeros = passed.astype(np.int64), (judged & ~passed).astype(np.int64)
        for table, (first, second) in enumerate(
            [(ones, ones), (ones, zeros), (zeros, ones), (zeros, zeros)]
        ):
            self._tables[table] += first @ second.T

    def result(self, later: Mapping[str, int]) -> Evaluation:
        images, pairs_by_image = np.unique(_all(self._images, np.int64), return_counts=True)
        sizes, counts = np.unique(pairs_by_image, return_counts=True)
        known, right = _all(self._known, bool), _all(self._right, bool)
        agreements = [
            Agreement(first.name, second.name, *map(int, self._tables[:, one, two]))
            for (one, first), (two, second) in combinations(enumerate(self._columns), 2)
        ]
        return Evaluation(
            pairs=self._pairs,
            images=len(images),
            per_image=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
            questions=len(np.unique(_all(self._questions, np.int64))),
            types=self._types,
            checks=tuple(
                _with_scores(_with_unasked(check, later), _all(scores, np.float32), known, right)
                for check, scores in zip(self._checks, self._scores, strict=True)
            ),
            agreements=tuple(agreements),
            kept=self._kept,
            reasons=self._filtered.reasons,
            filter=self._filter,
            kinds=self._kinds,
        )


def _with_unasked(check: CheckCounts, later: Mapping[str, int]) -> CheckCounts:
    unasked = min(check.unjudged, later.get(check.column.name, 0))
    return replace(check, unjudged=check.unjudged - unasked, unasked=unasked)


def _with_scores(check: CheckCounts, scores: Array, known: Array, right: Array) -> CheckCounts:
    judged = np.isfinite(scores)
    if not judged.any():
        return check
    area = None
    if len(known):
        both = judged & known
        area = auc(scores[both], right[both])
    quantiles = np.quantile(scores[judged], _QUANTILES)
    bins = tuple(_bins(scores[judged]))
    return replace(check, quantiles=tuple(quantiles.tolist()), auc=area, bins=bins)


def _bins(scores: Array) -> Iterator[tuple[str, int]]:
    """Values and how often each occurs; of more than a few, ranges of them."""
    values, counts = np.unique(scores, return_counts=True)
    if len(values) <= _BINS:
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            yield f"{value:.3g}", count
        return
    counts, edges = np.histogram(scores, _BINS)
    for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        yield f"{low:.3g} to {high:.3g}", count


def _all(parts: Sequence[Array], kind: Any) -> Array:
    return np.concatenate([np.empty(0, kind), *parts])


def _texts(batch: pa.RecordBatch, name: str) -> Iterator[str]:
    return (value or "" for value in batch.column(name).to_pylist())


def _digests(texts: Iterable[str]) -> Array:
    # Salted by this process: nobody can write texts that collide.
    return np.fromiter(map(hash, texts), np.int64)
