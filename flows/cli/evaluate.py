"""`prefect-imageqa evaluate`: what the pairs of an output are, and what its checks are worth."""

import json as json_
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cyclopts import App

from ...serving.errors import ImageQAError
from ...serving.printable import printable
from .options import Flag, Output, Store

if TYPE_CHECKING:
    from ...tasks.reporting.check_costs import CheckCost
    from ...tasks.reporting.detection import Detection, Share
    from ...tasks.reporting.evaluate import TruthOf
    from ...tasks.reporting.evaluation import CheckCounts, Evaluation
    from ...tasks.runs.run_record import RunRecord

evaluations = App()
"""Commands that `main` adds to its own."""

_MAX_LINES = 20
"""Types, kinds and reasons that are printed."""

_MAX_NAME = 60


@evaluations.command
def evaluate(
    output: Output,
    /,
    *,
    truth: str | None = None,
    scenes: str | None = None,
    review: str | None = None,
    store: Store = None,
    json: Flag = False,
) -> int:
    """Evaluate the pairs of an output: what they are, what the checks say, and what is right.

    No request is made. A check is right about a pair if it fails a wrong one, or passes a right
    one: whether it is depends on the dataset and the model, so measure with a sample whose truth
    is known. Shares have 95 % confidence intervals. Exit code 0: evaluated; 1: something cannot be
    read.

    Example: prefect-imageqa evaluate s3://bucket/qa --truth is_right

    Parameters
    ----------
    truth:
        Column of the dataset that says whether its pair is right: true, false, or nothing.
    scenes:
        The scenes.json of a demo dataset: the truth about its pairs is computed.
    review:
        A file that the page of `review` saved: the pairs that people have judged. What is right
        then is what they say, and all shares are those of these pairs.
    json:
        Print one line of JSON.
    """
    from ...tasks.reporting.check_costs import check_costs
    from ...tasks.reporting.evaluate import evaluate_output
    from ...tasks.runs.run_record import completed_run
    from ..open_store import open_store

    if sum(given is not None for given in (truth, scenes, review)) > 1:
        raise ImageQAError("give one of --truth, --scenes and --review: each says what is right")
    output_store = open_store(output, store)
    run = completed_run(output_store)
    known = _truth(truth, scenes, review, run.parameters.asking.samples)
    evaluation = evaluate_output(output_store, known, truth or "", run.parameters.checks.names)
    if known is not None and not evaluation.has_truth:
        raise ImageQAError("of none of the pairs it is known whether they are right")
    costs = list(check_costs(output_store))
    if json:
        print(json_.dumps({"output": output_store.uri, **_as_json(evaluation, costs)}))
    else:
        print("\n".join([output_store.uri, *_lines(run, evaluation, costs)]))
    return 0


def _truth(
    column: str | None, scenes: str | None, review: str | None, samples: int
) -> "TruthOf | None":
    from ...tasks.reporting.review import review_truth
    from ...tasks.reporting.truth import column_truth, read_scenes, scene_truth

    if column is not None:
        return column_truth(column)
    if review is not None:
        return review_truth(review)
    return scene_truth(read_scenes(scenes), samples) if scenes is not None else None


def _lines(
    run: "RunRecord", evaluation: "Evaluation", costs: Sequence["CheckCost"]
) -> Iterator[str]:
    from ...tasks.reporting.check_facts import agreement_rows, kept_sentence

    pairs, images = evaluation.pairs, evaluation.images
    yield f"{pairs:,} pairs about {images:,} images: {_per_image(evaluation.per_image)}"
    yield f"{evaluation.questions:,} distinct questions"
    yield from _table(("type", "pairs", ""), _counted(evaluation.types, pairs))
    yield ""
    yield printable(kept_sentence(evaluation, run.parameters.checks))
    yield from _table(("filtered by", "pairs", ""), _counted(evaluation.reasons, pairs))
    headers: tuple[str, ...] = (
        *("check", "passes if", "pass", "fail", "not judged", "not asked", "5 %, median, 95 %"),
    )
    yield from _table(headers, map(_check_row, evaluation.checks))
    headers = ("first", "second", "both pass", "only first", "only second", "none")
    yield from _table(headers, agreement_rows(evaluation))
    if evaluation.has_truth:
        yield from _truth_lines(evaluation)
    headers = ("check", "requests", "failed", "prompt tokens", "completion tokens", "request s")
    yield from _table(headers, map(_cost_row, costs))


def _truth_lines(evaluation: "Evaluation") -> Iterator[str]:
    before, after = evaluation.filter.before, evaluation.filter.after
    yield ""
    yield f"right before the filter: {_share(before)} of {before.of:,} pairs"
    yield f"right after the filter: {_share(after)} of {after.of:,} pairs"
    rows = [
        _detection_row(each.column.name, each.detection, each.auc) for each in evaluation.checks
    ]
    rows.append(_detection_row("the filter", evaluation.filter))
    yield from _table(
        ("", "right of those that pass", "precision", "recall", "right pairs lost", "AUC"), rows
    )
    yield (
        "precision: wrong ones among the pairs that fail; recall: wrong pairs that fail; "
        "AUC: how often a right pair scores above a wrong one"
    )
    kinds = sorted(evaluation.kinds.items(), key=lambda item: -item[1].before.of)
    by_kind = [
        (
            kind or "without a type",
            f"{of.before.of:,}",
            *map(_share, (of.before, of.after, of.lost)),
        )
        for kind, of in kinds[:_MAX_LINES]
    ]
    yield from _table(
        ("question", "pairs", "right before", "after the filter", "right pairs lost"), by_kind
    )


def _per_image(per_image: Mapping[int, int]) -> str:
    """'3 with 2, 1 with 5'; of many different numbers, the range."""
    if len(per_image) > 5:
        return f"{min(per_image):,} to {max(per_image):,} each"
    return ", ".join(f"{images:,} with {pairs:,}" for pairs, images in sorted(per_image.items()))


def _counted(counts: Mapping[str, int], total: int) -> Iterator[tuple[str, ...]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for name, count in ordered[:_MAX_LINES]:
        yield name, f"{count:,}", f"{100 * count / max(total, 1):.1f} %"
    if len(ordered) > _MAX_LINES:
        yield f"and {len(ordered) - _MAX_LINES:,} more", "", ""


def _check_row(check: "CheckCounts") -> tuple[str, ...]:
    counts = (check.passed, check.failed, check.unjudged, check.unasked)
    quantiles = ", ".join(f"{value:.3g}" for value in check.quantiles)
    return (check.column.name, check.column.rule, *(f"{count:,}" for count in counts), quantiles)


def _detection_row(name: str, found: "Detection", area: float | None = None) -> tuple[str, ...]:
    shares = (found.after, found.precision, found.recall)
    lost = f"{found.lost.count:,} of {found.lost.of:,}"
    return (name, *map(_share, shares), lost, "" if area is None else f"{area:.3f}")


def _cost_row(cost: "CheckCost") -> tuple[str, ...]:
    counts = (cost.asked, cost.failed, cost.prompt_tokens, cost.completion_tokens)
    return (cost.check, *(f"{count:,}" for count in counts), f"{cost.seconds:,.1f}")


def _share(share: "Share") -> str:
    """'98.5 % (97.9-99.0)'."""
    if share.value is None:
        return "-"
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table after an empty one; none without rows. Texts of any origin are harmless."""
    lines = [[printable(cell, _MAX_NAME) for cell in row] for row in rows]
    if not lines:
        return
    lines.insert(0, list(headers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    yield ""
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        yield "  ".join(cells).rstrip()


def _as_json(evaluation: "Evaluation", costs: Sequence["CheckCost"]) -> dict[str, Any]:
    from dataclasses import asdict

    result: dict[str, Any] = {
        "pairs": evaluation.pairs,
        "kept": evaluation.kept,
        "images": evaluation.images,
        "pairs_per_image": {str(pairs): n for pairs, n in sorted(evaluation.per_image.items())},
        "questions": evaluation.questions,
        "types": dict(evaluation.types),
        "filtered_by": dict(evaluation.reasons),
        "checks": {check.column.name: _check_json(check) for check in evaluation.checks},
        "agreements": [asdict(each) for each in evaluation.agreements],
        "costs": [asdict(cost) for cost in costs],
    }
    if evaluation.has_truth:
        result["filter"] = _detection_json(evaluation.filter)
        result["kinds"] = {
            kind: _detection_json(found) for kind, found in sorted(evaluation.kinds.items())
        }
    return result


def _check_json(check: "CheckCounts") -> dict[str, Any]:
    result: dict[str, Any] = {
        "passes_if": check.column.rule,
        "passed": check.passed,
        "failed": check.failed,
        "unjudged": check.unjudged,
        "unasked": check.unasked,
        "quantiles": list(check.quantiles),
        "bins": dict(check.bins),
    }
    if check.detection.before.of:
        result |= {"auc": check.auc, **_detection_json(check.detection)}
    return result


def _detection_json(found: "Detection") -> dict[str, Any]:
    shares = {
        "right_before": found.before,
        "right_after": found.after,
        "passed_share": found.passed,
        "precision": found.precision,
        "recall": found.recall,
        "right_lost": found.lost,
    }
    return {name: _share_json(share) for name, share in shares.items()}


def _share_json(share: "Share") -> dict[str, Any]:
    return {
        "count": share.count,
        "of": share.of,
        "share": share.value,
        "interval": list(share.interval),
    }
