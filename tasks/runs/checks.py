"""How the pairs of a run are checked, and which of them are kept."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ..checking.balance import Cap
from ..checking.best import Best
from ..checking.catalogue import NEGATIVES, CheckName
from .form_types import Group, OptionalText, plain_uri

NO_CHECKS = (
    "batch files have no requests of checks: leave the checks out, and make them afterwards with "
    "`prefect-imageqa run`, the same flags and an endpoint: it asks for nothing else"
)
"""Why a run on the results of batch files has none."""

_USED_BY: Mapping[str, tuple[CheckName, ...]] = {
    "times": ("consistency",),
    "none_option": ("blind", "swapped"),
    "rubric": ("judge",),
    "judge_endpoint": ("judge",),
    "judge_model": ("judge",),
    "benchmarks": ("contamination",),
}
"""The checks that a field is for."""


class Checks(Group):
    """What every pair is checked for, and which pairs are kept."""

    names: tuple[CheckName, ...] = Field(
        default=(),
        description="Checks to make of every pair; each gives columns in pairs.parquet. The model "
        "is asked for consistency (it answers the question again), confidence (how probable it "
        "finds the answer), fluency (how probable it finds the question), perturbed (the answer "
        "again, with slightly changed images), blind (without the image), swapped (with another "
        "image) and judge (it rates the pair); nothing is asked for form, duplicates and "
        "contamination.",
    )
    keep: OptionalText = Field(
        default="",
        description="SQL condition on the columns of the checks and of the pairs, such as "
        "consistency >= 0.66 AND NOT blind_answerable. Pairs that do not meet it go to "
        "filtered.parquet. By default all are kept.",
    )
    keep_best: tuple[str, ...] = Field(
        default=(),
        max_length=20,
        description="Of the pairs that meet the condition, the best share by a number of a check "
        "to keep, such as confidence=0.9 (the best 90 %). Pairs without a result are not kept.",
    )
    ask_dropped: bool = Field(
        default=False,
        description="Also make the checks of pairs that the condition already drops, so that a "
        "looser condition needs no request.",
    )
    max_per: tuple[str, ...] = Field(
        default=(),
        description="Limits on the kept pairs of one type, answer or image, such as type=0.3 (at "
        "most 30 % of all) or image=5 (at most 5 each).",
    )
    times: int = Field(
        default=1,
        ge=1,
        le=20,
        description="How many times consistency asks each question again: once greedily, or "
        "several times with sampling.",
    )
    none_option: bool = Field(
        default=False,
        description="Add the option None of the above where blind and swapped ask with options.",
    )
    negatives: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        allow_inf_nan=False,
        description="Share of all pairs, up to 0.5, that should be unanswerable: questions about "
        "another image, which the model says does not answer them. They are added to the pairs of "
        "that image, of type unanswerable.",
    )
    rubric: OptionalText = Field(
        default="",
        description="Path or s3:// URI of a file with the axes that judge rates; by default "
        "formatting, relevance, visual dependency and correspondence with the image.",
    )
    judge_endpoint: OptionalText = Field(
        default="",
        description="URL of the server that judge asks, several URLs separated by spaces, or the "
        "name of a saved vLLM Endpoint block; by default the endpoint of the run.",
    )
    judge_model: OptionalText = Field(
        default="",
        description="Name the judge's model is served under, if its server serves several. With "
        "it, a judge whose ratings are all there need not be up.",
    )
    benchmarks: tuple[str, ...] = Field(
        default=(),
        validate_default=True,
        description="Test sets that contamination compares images and questions with: folders of "
        "images, or tables with images.",
    )
    seed: int = Field(
        default=0, description="Another seed draws other pairs and images where checks draw some."
    )

    @field_validator("names", "keep_best", "max_per", "benchmarks")
    @classmethod
    def _once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(given))

    @field_validator("max_per")
    @classmethod
    def _check_caps(cls, caps: tuple[str, ...]) -> tuple[str, ...]:
        for cap in caps:
            Cap.parse(cap)
        return caps

    @field_validator("keep_best")
    @classmethod
    def _check_best(cls, best: tuple[str, ...]) -> tuple[str, ...]:
        for each in best:
            Best.parse(each)
        return best

    @field_validator(*_USED_BY)
    @classmethod
    def _check_is_made(cls, given: Any, info: ValidationInfo) -> Any:
        """Nobody may believe that pairs were compared with a test set, or rated by a rubric."""
        field = str(info.field_name)
        names = info.data.get("names", _USED_BY[field])  # not there if they are wrong themselves
        is_given = given not in (cls.model_fields[field].default, None)
        if is_given and not set(names).intersection(_USED_BY[field]):
            raise ValueError(f"this is for check {' or '.join(_USED_BY[field])}, which is not made")
        return given

    @field_validator("rubric")
    @classmethod
    def _check_rubric(cls, rubric: str | None) -> str | None:
        return plain_uri(rubric)

    @field_validator("benchmarks")
    @classmethod
    def _check_benchmarks(
        cls, benchmarks: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        if not benchmarks and "contamination" in info.data.get("names", ()):
            raise ValueError("name the test sets that check contamination compares with")
        for uri in benchmarks:
            plain_uri(uri)
        return benchmarks

    @property
    def are_wanted(self) -> bool:
        """Whether there is anything to be done."""
        return bool(
            self.names
            or (self.keep or "").strip()
            or self.keep_best
            or self.max_per
            or self.negatives
        )

    @property
    def best(self) -> list[Best]:
        """The shares to keep."""
        return list(map(Best.parse, self.keep_best))

    @property
    def passes(self) -> tuple[str, ...]:
        """The names of the passes that may be made."""
        return (*self.names, *((NEGATIVES,) if self.negatives else ()))

    @property
    def caps(self) -> list[Cap]:
        """The limits."""
        return list(map(Cap.parse, self.max_per))
