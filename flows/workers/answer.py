"""A batch -> its stored rows, by a worker."""

from dataclasses import dataclass

from prefect import get_run_logger, task

from ...tasks.concurrency import TASK_OPTIONS, Pending
from ...tasks.errors import ObjectMissingError
from ...tasks.object_store.store import ObjectStore
from ...tasks.records import Batch
from ...tasks.storing.store import StoredBatch, read_part
from ..open_pass import OpenPass
from .crew import Crew
from .messages import Work


@dataclass(frozen=True)
class HandedPass:
    """A pass whose batches are given to workers.

    Attributes:
        crew: the workers.
        work: what they are told about the pass.
    """

    crew: Crew
    work: Work


def handed_pass(crew: Crew | None, current: OpenPass) -> HandedPass | None:
    """A pass as workers get it; None if the run answers its batches itself."""
    if crew is None:
        return None
    if (work := Work.of(current)) is None:
        label = current.prompt_settings.label
        get_run_logger().info(
            "the run answers the rows of %s itself: only it has the parser or the model",
            f"check {label}" if label else "the dataset",
        )
        return None
    return HandedPass(crew, work)


@task(name="answer", task_run_name="answer-{batch}", **TASK_OPTIONS)
def answer_batch(batch: Batch, handed: HandedPass, output: ObjectStore) -> StoredBatch:
    """Have a worker generate, parse and store a batch.

    Raises:
        ImageQAError: what ended the batch; or its workers were lost.
    """
    result = handed.crew.answer(batch, handed.work)
    try:
        rows = read_part(output, result.part)
    except ObjectMissingError:  # somebody else has removed it: it is made again, of the replies
        result = handed.crew.answer(batch, handed.work)
        rows = read_part(output, result.part)
    batch.corrections = result.corrections
    batch.corrected.update(dict.fromkeys(result.corrected, ""))
    return StoredBatch(result.part, rows, result.time)


def as_stored(
    batch: Batch,  # noqa: ARG001
    answered: Pending[StoredBatch],
) -> Pending[StoredBatch]:
    """What a worker has answered, it has stored, too."""
    return answered
