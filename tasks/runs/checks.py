"""How the pairs of a run are checked, and which of them are kept."""

from pydantic import Field, field_validator

from ..checking.balance import Cap
from ..checking.catalogue import CheckName
from .form_types import Group, OptionalText, plain_uri

NO_CHECKS = (
    "batch files have no requests of checks: leave the checks out, and make them afterwards with "
    "`prefect-imageqa run`, the same flags and an endpoint: it asks for nothing else"
)
"""Why a run on the results of batch files has none."""


class Checks(Group):
    """What every pair is checked for, and which pairs are kept."""

    names: tuple[CheckName, ...] = Field(
        default=(),
        description="Checks to make of every pair; each gives columns in pairs.parquet. The model "
        "is asked for consistency (it answers the question again), confidence (how probable it "
        "finds the answer), perturbed (again, with slightly changed images), blind (without the "
        "image), swapped (with another image) and judge (it rates the pair); nothing is asked for "
        "form, duplicates and contamination.",
    )
    keep: OptionalText = Field(
        default="",
        description="SQL condition on the columns of the checks and of the pairs, such as "
        "consistency >= 0.66 AND NOT blind_answerable. Pairs that do not meet it go to "
        "filtered.parquet. By default all are kept.",
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
    rubric: OptionalText = Field(
        default="",
        description="Path or s3:// URI of a file with the axes that judge rates; by default "
        "formatting, relevance, visual dependency and correspondence with the image.",
    )
    benchmarks: tuple[str, ...] = Field(
        default=(),
        description="Test sets that contamination compares images and questions with: folders of "
        "images, or tables with images.",
    )
    seed: int = Field(
        default=0, description="Another seed draws other pairs and images where checks draw some."
    )

    @field_validator("names", "max_per", "benchmarks")
    @classmethod
    def _once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(given))

    @field_validator("max_per")
    @classmethod
    def _check_caps(cls, caps: tuple[str, ...]) -> tuple[str, ...]:
        for cap in caps:
            Cap.parse(cap)
        return caps

    @field_validator("rubric")
    @classmethod
    def _check_rubric(cls, rubric: str | None) -> str | None:
        return plain_uri(rubric)

    @field_validator("benchmarks")
    @classmethod
    def _check_benchmarks(cls, benchmarks: tuple[str, ...]) -> tuple[str, ...]:
        for uri in benchmarks:
            plain_uri(uri)
        return benchmarks

    @property
    def are_wanted(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.names or (self.keep or "").strip() or self.max_per)

    @property
    def caps(self) -> list[Cap]:
        """The limits."""
        return list(map(Cap.parse, self.max_per))
