"""The checks by name. The module of a check is imported when it is opened."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from ..images.prepare import ImageSettings
from ..object_store.store import ObjectStore
from .check import Check

if TYPE_CHECKING:
    from .hashed_rows import HashRows, ImageSource

CheckName = Literal[
    "consistency",
    "confidence",
    "fluency",
    "perturbed",
    "blind",
    "swapped",
    "judge",
    "form",
    "duplicates",
    "contamination",
]
"""The checks there are."""

CHECK_NAMES: Sequence[CheckName] = get_args(CheckName)

NEGATIVES = "negatives"
"""The pass that finds unanswerable pairs: it asks as a check does, and gives no column."""

READING: frozenset[CheckName] = frozenset({"duplicates", "contamination"})
"""Checks that read files, which may have changed since."""


@dataclass(frozen=True)
class CheckSettings:
    """What checks are made with.

    Attributes:
        store: the output, which remembers the hashes of images.
        source: the rows of the dataset, when pairs are judged.
        times: how often consistency asks a question again.
        none_option: whether options get another one, "None of the above".
        rubric: path or `s3://` URI of what the judge rates; empty for the built-in one.
        benchmarks: sets that the pairs should have nothing of.
        limits: on the images of these.
        seed: of whatever is drawn.
    """

    store: ObjectStore
    source: "Callable[[], ImageSource]"
    times: int = 1
    none_option: bool = False
    rubric: str = ""
    benchmarks: Sequence[str] = ()
    limits: ImageSettings = field(default_factory=ImageSettings)
    seed: int = 0


def open_check(name: CheckName, settings: CheckSettings) -> Check:
    """Open a check.

    Raises:
        ImageQAError: something that it needs is not given, or cannot be used.
    """
    return _FACTORIES[name](settings)


def missing_check(column: str, columns: Iterable[str]) -> str:
    """The check that gives such a column, by its name, if none of `columns` is its; else empty."""

    def of(name: str) -> set[str]:
        words = name.lower().split("_")
        return {check for check in CHECK_NAMES if check.removesuffix("s") in words}

    return next(iter(of(column).difference(*map(of, columns))), "")


def _consistency(settings: CheckSettings) -> Check:
    from .consistency import check

    return check(settings.times)


def _confidence(_: CheckSettings) -> Check:
    from .confidence import check

    return check()


def _fluency(_: CheckSettings) -> Check:
    from .confidence import fluency_check

    return fluency_check()


def _perturbed(_: CheckSettings) -> Check:
    from .perturbed import check

    return check()


def _blind(settings: CheckSettings) -> Check:
    from .visual import blind_check

    return blind_check(none_option=settings.none_option, seed=settings.seed)


def _swapped(settings: CheckSettings) -> Check:
    from .visual import swapped_check

    return swapped_check(none_option=settings.none_option, seed=settings.seed)


def _judge(settings: CheckSettings) -> Check:
    from .judge import check
    from .rubric import BUILT_IN, read_rubric

    credentials = settings.store.s3_credentials
    rubric = read_rubric(settings.rubric, credentials) if settings.rubric else BUILT_IN
    return check(rubric)


def _form(_: CheckSettings) -> Check:
    from .form import check

    return check()


def _duplicates(settings: CheckSettings) -> Check:
    from .duplicates import check

    return check(_hash_rows(settings))


def _contamination(settings: CheckSettings) -> Check:
    from .benchmarks import open_benchmark, read_benchmarks
    from .contamination import check

    credentials = settings.store.s3_credentials
    for source in settings.benchmarks:
        open_benchmark(source, credentials)  # before anything is asked
    return check(
        _hash_rows(settings),
        lambda: read_benchmarks(settings.benchmarks, settings.limits, settings.store, credentials),
    )


def _hash_rows(settings: CheckSettings) -> "HashRows":
    from .hashed_rows import row_hasher

    return lambda wanted: row_hasher(settings.source(), settings.store)(wanted)


_FACTORIES: Mapping[CheckName, Callable[[CheckSettings], Check]] = {
    "consistency": _consistency,
    "confidence": _confidence,
    "fluency": _fluency,
    "perturbed": _perturbed,
    "blind": _blind,
    "swapped": _swapped,
    "judge": _judge,
    "form": _form,
    "duplicates": _duplicates,
    "contamination": _contamination,
}
