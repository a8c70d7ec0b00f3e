"""The texts of a report about checks. They are not escaped and may contain untrusted input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..runs.checks import Checks
from ..runs.run_counts import RunCounts
from .disagreements import CheckedValue, DisputedPair
from .evaluation import Evaluation
from .facts import Fact, share_of, truncate
from .row_images import SampledImage

MAX_REASONS = 10
"""Reasons of filtered pairs that are listed, the most common first."""


@dataclass(frozen=True)
class Step:
    """A step of the funnel.

    Attributes:
        name: what remains.
        remaining: how many rows or pairs remain.
        share: of the rows, or of the pairs.
        judged: pairs that pass this check, fail it, have no result, or were not asked about; empty
            if it is none.
    """

    name: str
    remaining: str
    share: str = ""
    judged: tuple[str, str, str, str] = ("", "", "", "")


@dataclass(frozen=True)
class DisputedCard:
    """A pair about which checks disagree, as a page shows it.

    Attributes:
        pair: the pair, with its texts truncated.
        where: its place, and whether it is kept.
        results: of the checks that have one.
        evidence: what they were answered.
    """

    pair: DisputedPair
    where: str
    results: tuple[CheckedValue, ...]
    evidence: tuple[CheckedValue, ...]

    @property
    def image(self) -> SampledImage | None:
        """Of its row; None if it could not be read."""
        return next((image for image in self.pair.images if image.large), None)


@dataclass(frozen=True)
class ChecksSection:
    """What a page says about checks.

    Attributes:
        funnel: its steps.
        kept: how many pairs are kept, in a sentence.
        reasons: why the others are not.
        charts: title and bars of the distribution of each score.
        agreements: names of two checks, and how many pairs both pass, one, the other, or none.
        disputed: pairs about which checks disagree.
    """

    funnel: Sequence[Step]
    kept: str
    reasons: Sequence[Fact]
    charts: Sequence[tuple[str, Sequence[Fact]]]
    agreements: Sequence[tuple[str, ...]]
    disputed: Sequence[DisputedCard]


def checks_section(
    counts: RunCounts,
    evaluation: Evaluation,
    disputed: Sequence[DisputedPair] = (),
    checks: Checks = Checks(),  # noqa: B008
) -> ChecksSection:
    """What a page says about the checks of a run.

    Args:
        counts: of the run.
        evaluation: of its pairs.
        disputed: pairs about which checks disagree.
        checks: which pairs are kept.
    """
    return ChecksSection(
        funnel=list(funnel(counts, evaluation)),
        kept=kept_sentence(evaluation, checks),
        reasons=list(filter_reasons(evaluation)),
        charts=list(score_charts(evaluation)),
        agreements=list(agreement_rows(evaluation)),
        disputed=list(map(_card, disputed)),
    )


def funnel(counts: RunCounts, evaluation: Evaluation) -> Iterator[Step]:
    """What remains after each step: rows asked and answered, then pairs.

    A check takes out the pairs that it fails. Those without a result stay: they may be filtered
    all the same, as may pairs that pass all checks.
    """
    answered, pairs = counts.ok + counts.filtered, evaluation.pairs
    yield Step("rows asked", f"{counts.rows:,}")
    yield Step("rows answered", f"{answered:,}", share_of(answered, counts.rows))
    yield Step("pairs parsed", f"{pairs:,}", share_of(pairs, pairs))
    for check in evaluation.checks:
        yield Step(
            f"{check.column.name}: {check.column.rule}",
            f"{check.so_far:,}",
            share_of(check.so_far, pairs),
            (
                *(f"{check.passed:,}", f"{check.failed:,}"),
                *(f"{check.unjudged:,}", f"{check.unasked:,}"),
            ),
        )
    yield Step("pairs kept", f"{evaluation.kept:,}", share_of(evaluation.kept, pairs))


def kept_sentence(evaluation: Evaluation, checks: Checks = Checks()) -> str:  # noqa: B008
    """How many pairs are kept, and by which condition and limits."""
    share = share_of(evaluation.kept, evaluation.pairs)
    clauses = [f"{evaluation.kept:,} of {evaluation.pairs:,} pairs are kept"]
    clauses[0] += f" ({share})" if share else ""
    if keep := (checks.keep or "").strip():
        clauses.append(f"by the condition {truncate(keep, 'reason')}")
    clauses += [f"the {truncate(best.text, 'reason')}" for best in checks.best]
    if checks.max_per:
        clauses.append(f"at most {truncate(', '.join(checks.max_per), 'reason')}")
    return "; ".join(clauses)


def filter_reasons(evaluation: Evaluation) -> Iterator[Fact]:
    """Why pairs are filtered, the most common reason first."""
    for reason, count in evaluation.reasons.most_common(MAX_REASONS):
        name = truncate(reason or "no reason stated", "reason")
        yield Fact(name, f"{count:,}", share=share_of(count, evaluation.pairs))


def score_charts(evaluation: Evaluation) -> Iterator[tuple[str, Sequence[Fact]]]:
    """Titles and bars of the distribution of each score that has several values."""
    for check in evaluation.checks:
        if not check.bins:
            continue
        counts = [count for _, count in check.bins]
        bars = [
            Fact(name, share_of(count, sum(counts)), percent=round(100 * count / max(counts), 1))
            for name, count in check.bins
        ]
        yield check.column.name, bars


def agreement_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    """Two checks, and of the pairs that both have judged: both pass, one, the other, none."""
    for each in evaluation.agreements:
        counts = (each.both, each.only_first, each.only_second, each.neither)
        if any(counts):
            yield (each.first, each.second, *(f"{count:,}" for count in counts))


def _card(disputed: DisputedPair) -> DisputedCard:
    kept = "kept" if disputed.kept else "filtered"
    where = f"row {disputed.row:,}, pair {disputed.number:,} · {kept}"
    values = disputed.values
    return DisputedCard(
        disputed,
        where,
        tuple(value for value in values if value.passed is not None),
        tuple(value for value in values if value.passed is None),
    )
