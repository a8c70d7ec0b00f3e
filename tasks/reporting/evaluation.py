"""What is known about the pairs of an output: their numbers, and what the checks say."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .check_columns import ResultColumn
from .detection import Detection


@dataclass(frozen=True)
class CheckCounts:
    """What a check says of all pairs.

    Attributes:
        column: with its results.
        passed: pairs that pass.
        failed: pairs that do not.
        unjudged: pairs without a result.
        unasked: pairs of which the check was not made, since the run had dropped them before.
        so_far: pairs that none of the checks up to this one fails.
        quantiles: of numbers, those of 5 %, 50 % and 95 %.
        bins: of numbers, their distribution: values or ranges, and how many pairs have them.
        detection: of the pairs with a result whose truth is known.
        auc: of numbers, see `detection.auc`.
    """

    column: ResultColumn
    passed: int = 0
    failed: int = 0
    unjudged: int = 0
    unasked: int = 0
    so_far: int = 0
    quantiles: tuple[float, ...] = ()
    bins: tuple[tuple[str, int], ...] = ()
    detection: Detection = field(default_factory=Detection)
    auc: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How two checks agree about the pairs that both have judged.

    Attributes:
        first: name of the one's column.
        second: name of the other's.
        both: pairs that pass both.
        only_first: pairs that pass the first only.
        only_second: pairs that pass the second only.
        neither: pairs that pass none.
    """

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class Evaluation:
    """What the pairs of an output are.

    Attributes:
        pairs: all of them, those filtered out too.
        images: distinct sets of images that they are about; pairs without any count as one.
        per_image: how many images have 1, 2, ... pairs.
        questions: distinct ones, apart from case and punctuation.
        types: of the pairs, as far as they have one.
        checks: what each check says.
        agreements: of each two checks.
        kept: pairs that are not filtered out.
        reasons: how many pairs were filtered out for which reason.
        filter: of the pairs whose truth is known; those that are kept pass.
        kinds: the same by kind of question.
    """

    pairs: int
    images: int
    per_image: Mapping[int, int]
    questions: int
    types: Counter[str]
    checks: tuple[CheckCounts, ...]
    agreements: tuple[Agreement, ...]
    kept: int
    reasons: Counter[str]
    filter: Detection = field(default_factory=Detection)
    kinds: Mapping[str, Detection] = field(default_factory=dict)

    @property
    def has_truth(self) -> bool:
        """Whether the truth of any pair is known."""
        return bool(self.filter.before.of)
