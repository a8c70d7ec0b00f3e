"""What became of the rows of a run, in numbers."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RunCounts(BaseModel):
    """Counts of the rows of a run so far: `rows = ok + filtered + quarantined`.

    Attributes:
        rows: finished rows of the dataset.
        ok: rows with an answer, from this run or an earlier one.
        filtered: rows with an answer of which no pair is kept.
        quarantined: rows that could not be answered.
        reused: ok rows whose answer was stored before this run.
        attempted: rows this run sent to the model, or answered from stored completions; with
            questions that are answered separately, these too.
        retried: attempted rows that an earlier run had quarantined.
        duplicates: rows like an earlier one that this run attempted, and whose outcome they share;
            not part of `rows` until the run has ended.
        pairs: QA pairs of the ok rows; those that are kept.
        filtered_pairs: pairs that checks, conditions or limits have filtered out.
        negatives: unanswerable pairs that were added, whether or not they are kept.
        unjudged: by check, pairs of which it has no result; without checks that judged all.
        lost_pairs: pairs that replies of the ok rows seem to have, but that could not be read; 0
            until the run has ended.
        duplicate_pairs: pairs that repeat one of the same record, and are left out of the exports.
        unanswered: questions of the ok rows that were asked separately and could not be answered.
        corrected: rows of this run that a corrective request made usable.
        corrections: corrective requests of this run: each shows the model its own unusable reply.
        requests: requests sent to the model, including retries.
        prompt_tokens: tokens the model read.
        completion_tokens: tokens the model generated.
        seconds: duration of the flow, without the start-up of Prefect and vLLM.
        reasons: quarantined rows by kind; empty until the run has ended.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    ok: int = 0
    filtered: int = 0
    quarantined: int = 0
    reused: int = 0
    attempted: int = 0
    retried: int = 0
    duplicates: int = 0
    pairs: int = 0
    filtered_pairs: int = 0
    negatives: int = 0
    unjudged: Mapping[str, int] = Field(default_factory=dict)
    lost_pairs: int = 0
    duplicate_pairs: int = 0
    unanswered: int = 0
    corrected: int = 0
    corrections: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    reasons: Mapping[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_conservation(self) -> Self:
        if self.rows != self.ok + self.filtered + self.quarantined:
            raise ValueError(
                f"{self.rows} rows are not the sum of {self.ok} ok, {self.filtered} filtered and "
                f"{self.quarantined} quarantined rows"
            )
        return self
