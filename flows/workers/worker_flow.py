"""The flow `image-qa-worker`: a worker that a work pool starts as a process, container or pod."""

from prefect import get_run_logger

from ..prefect_flow import deployable_flow
from ..run_log import forward_logs
from .job import WorkerJob
from .worker import work


@deployable_flow(
    name="image-qa-worker",
    description="A worker of an image-qa run, which creates it and tells it when to end.",
    retries=0,  # the run starts another one
    persist_result=False,  # Prefect would pickle it, and reading a pickle runs code
)
def image_qa_worker(job: WorkerJob) -> None:
    """Answer batches of a run until the run ends.

    Args:
        job: What the run tells its worker. Credentials are not part of it: they are those of the
            worker's environment, or of saved blocks.

    Raises:
        EndpointError: no server answers, or one refuses the key or does not serve the model.
        ImageQAError: the run was killed.
        StoreError: the output cannot be read or written.
    """
    with forward_logs(get_run_logger()):
        work(job)
