"""What `checks.py` makes of judged pairs: shares, their intervals, and the tables of the docs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from check_sources import SOURCES, Goal, Item, Source
from prefect_imageqa.tasks.checking.best import Best
from prefect_imageqa.tasks.checking.conditions import Condition
from prefect_imageqa.tasks.errors import ConditionError
from prefect_imageqa.tasks.reporting.check_columns import as_numbers, result_columns
from prefect_imageqa.tasks.reporting.detection import Detection, Share, detect
from prefect_imageqa.tasks.storing.key_index import Array


@dataclass(frozen=True)
class Judged:
    """How a column of a check, or a filter, tells the pairs of a source apart.

    Attributes:
        rule: what passes.
        judged: pairs with a result.
        detection: the pairs with a result, by whether they are good and whether they pass. Good is
            a right pair whose question does not give its answer away.
    """

    rule: str
    judged: int
    detection: Detection


@dataclass(frozen=True)
class Cost:
    """What a check took: the requests, and the seconds of the run that added it."""

    requests: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """What was measured of a source.

    Attributes:
        pairs: how many of its pairs were checked.
        rows: how many rows it has; those without a pair had no usable reply.
        columns: by the name of a check's column.
        filter: of its filter; None if a check is missing that the filter needs.
        groups: the filter's, by group; all pass if there is no filter.
        costs: by the name of a check; "" for the run that asked for the pairs.
    """

    pairs: int
    rows: int
    columns: Mapping[str, Judged]
    filter: Judged | None
    groups: Mapping[str, Detection]
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Result":
        """The result of its fields as plain JSON, as `asdict` gives them."""
        return cls(
            plain["pairs"],
            plain["rows"],
            {name: _judged(each) for name, each in plain["columns"].items()},
            _judged(plain["filter"]) if plain["filter"] else None,
            {name: Detection(**each) for name, each in plain["groups"].items()},
            {name: Cost(**each) for name, each in plain["costs"].items()},
        )

    def to_plain(self) -> dict[str, Any]:
        """Its fields as plain JSON."""
        return asdict(self)


def _judged(plain: Mapping[str, Any]) -> Judged:
    return Judged(plain["rule"], plain["judged"], Detection(**plain["detection"]))


def evaluate(name: str, items: Sequence[Item], table: pa.Table) -> Result:
    """Compare judged pairs with what is known about their rows.

    Args:
        name: of the source.
        items: its rows.
        table: the pairs, as in `checks/judged.parquet`.
    """
    pairs = table.select(["row", "question", "answer"]).to_pylist()
    rows = [items[pair["row"]] for pair in pairs]
    good = np.array(
        [
            item.is_right(pair["question"], pair["answer"]) and not item.gives_away
            for item, pair in zip(rows, pairs, strict=True)
        ],
        bool,
    )
    everything, table = np.ones(len(pairs), bool), table.combine_chunks()
    columns = {}
    for column in result_columns(table.schema):
        values = pa.concat_arrays(table.column(column.name).chunks)
        if column.needs_bound:
            numbers = as_numbers(values)
            column = column.bounded(numbers[~np.isnan(numbers)])
        judged, passed = column.outcomes(values)
        found = detect(judged, good, passed)
        columns[column.name] = Judged(column.rule, int(judged.sum()), found)
    source, kept, kept_by = SOURCES[name], everything, None
    try:
        kept = _kept(source, table)
        rule = " ".join([source.keep, *(f"--keep-best {each}" for each in source.best)]).strip()
        kept_by = Judged(rule, len(pairs), detect(everything, good, kept))
    except ConditionError as error:  # it needs a check that was not made
        print(f"{name}: not filtered: {error}")
    groups = np.array(
        [item.group_of(pair["question"]) for item, pair in zip(rows, pairs, strict=True)]
    )
    return Result(
        len(pairs),
        len(items),
        columns,
        kept_by,
        {group: detect(groups == group, good, kept) for group in sorted({*groups.tolist()})},
    )


def _kept(source: Source, table: pa.Table) -> Array:
    """Which pairs the filter of a source keeps; as `--keep` and `--keep-best` do."""
    passed = [np.empty(0, bool)]
    condition = Condition(source.keep, table.schema)
    for batch in table.to_batches():
        parts = [pc.fill_null(part, False).to_numpy() for part in condition.evaluate(batch)]
        passed.append(np.all([np.ones(len(batch), bool), *parts], axis=0))
    meeting = np.concatenate(passed)
    kept = meeting
    for best in map(Best.parse, source.best):
        best.check(table.schema)
        values = as_numbers(pa.concat_arrays(table.column(best.column).chunks))
        has_value = meeting & ~np.isnan(values)
        kept = kept & has_value & (values >= best.bound(values[has_value]))
    return kept


def tables(results: Mapping[str, Result]) -> str:
    """The tables of the docs, with the sources in their order."""
    results = {name: results[name] for name in SOURCES if name in results}
    return "\n".join(
        [
            "The filter that goes with each source:\n",
            markdown_table(_FILTERS, _filters(results)),
            "Each check alone, of the pairs with a result. *Wrong found* is the share of the wrong "
            "pairs that do not pass, *rightly dropped* the share of wrong ones among those that "
            "do not pass, *right lost* the share of the right pairs that do not pass. In source "
            "give-away, the wrong pairs are those whose question contains the answer.\n",
            markdown_table(_CHECKS, _checks(results)),
            "What is wrong before and after the filter, by kind of question or image:\n",
            markdown_table(_GROUPS, _groups(results)),
            "What the checks cost, over all sources:\n",
            markdown_table(_COSTS, _costs(results)),
        ]
    )


_FILTERS = (
    "source",
    "pairs",
    "filter",
    "kept",
    "right before",
    "right after",
    "right lost",
    "goal",
)
_CHECKS = (
    *("source", "check", "passes", "with a result", "kept", "right after"),
    *("wrong found", "rightly dropped", "right lost"),
)
_GROUPS = ("source", "kind", "pairs", "kept", "right before", "right after")
_COSTS = ("check", "requests a pair", "seconds for 1,000 pairs")

Lines = Iterable[Sequence[str]]


def _filters(results: Mapping[str, Result]) -> Lines:
    for name, result in results.items():
        if result.filter is not None:
            found, goal = result.filter.detection, SOURCES[name].goal
            yield (
                name,
                f"{result.pairs:,}",
                f"`{result.filter.rule}`",
                _percent(found.passed),
                with_interval(found.before),
                with_interval(found.after),
                _percent(found.lost),
                _met(found, goal) if goal else "",
            )


def _met(found: Detection, goal: Goal) -> str:
    right, kept = found.after.value or 0, found.passed.value or 0
    met = right >= goal.right and kept >= goal.kept
    return f"{goal.right:.1%} at {goal.kept:.0%} kept: {'met' if met else 'missed'}"


def _checks(results: Mapping[str, Result]) -> Lines:
    for name, result in results.items():
        for column, judged in result.columns.items():
            found = judged.detection
            yield (
                name,
                f"`{column}`",
                judged.rule,
                _percent(Share(judged.judged, result.pairs)),
                _percent(found.passed),
                with_interval(found.after),
                with_interval(found.recall),
                with_interval(found.precision),
                with_interval(found.lost),
            )


def _groups(results: Mapping[str, Result]) -> Lines:
    for name, result in results.items():
        for group, found in result.groups.items():
            shares = (found.passed, found.before, found.after)
            yield name, group, f"{found.before.of:,}", *map(_percent, shares)


def _costs(results: Mapping[str, Result]) -> Lines:
    names = dict.fromkeys(check for result in results.values() for check in result.costs)
    for check in names:
        measured = [result for result in results.values() if check in result.costs]
        pairs = sum(result.pairs for result in measured) or 1
        requests = sum(result.costs[check].requests for result in measured)
        seconds = sum(result.costs[check].seconds for result in measured)
        label = f"`{check}`" if check else "the pairs themselves"
        yield label, f"{requests / pairs:.2f}", f"{1000 * seconds / pairs:.0f}"


def markdown_table(headings: Sequence[str], lines: Lines) -> str:
    """A table in Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def _percent(share: Share) -> str:
    return "" if share.value is None else f"{share.value:.1%}"


def with_interval(share: Share, digits: int = 1) -> str:
    """A share of 0 to 1 in percent, with its 95 % confidence interval."""
    if share.value is None:
        return ""
    low, high = (f"{100 * end:.{digits}f}" for end in share.interval)
    return f"{share.value:.{digits}%} [{low}-{high}]"
