"""Opens the crew of a run, and refuses what workers could not do."""

import logging
import secrets
from typing import Any

from prefect.blocks.core import Block
from prefect.runtime import deployment

from ...serving.endpoint import VLLMEndpoint
from ...tasks.errors import ImageQAError
from ...tasks.object_store.store import ObjectStore
from ...tasks.runs.heartbeat import this_process
from ...tasks.runs.parameters import Limits, RunParameters
from ...tasks.runs.workers import Workers
from ..open_model import RunModel
from ..task_runs import MAX_ROWS
from .channel import Channel
from .crew import Crew
from .job import WorkerJob

_LOGGER = logging.getLogger("prefect_imageqa.workers")


def check_workers(parameters: RunParameters, endpoint: object) -> None:
    """Refuse a run that workers could not work for.

    Raises:
        ImageQAError: it starts a server, takes replies from files, or gives a block that has
            secrets and no name.
    """
    if not parameters.workers.are_wanted:
        return
    if not isinstance(endpoint, VLLMEndpoint):
        raise ImageQAError(
            "workers ask servers that run already: give --endpoint, or leave out --workers"
        )
    for block in (parameters.endpoint, parameters.store):
        if isinstance(block, Block) and not _name(block) and _has_secrets(block):
            raise ImageQAError(
                f"workers get no secrets from a run: save the {block.get_block_type_slug()} block "
                "and give its name, or put what it holds into the environment"
            )


def open_crew(
    parameters: RunParameters,
    run: str,
    output: ObjectStore,
    endpoint: VLLMEndpoint,
    model: RunModel,
    confined: str | None,
) -> Crew:
    """The crew of a run, none of whose workers has been started; to be closed.

    Args:
        parameters: those of the run.
        run: its id.
        output: its output.
        endpoint: the servers.
        model: what the run itself asks.
        confined: the only folder that images may come from, if there is one.
    """
    limits = parameters.limits
    workers = _busy(parameters.workers, limits)
    name = _name(endpoint)
    job = WorkerJob(
        output=output.uri,
        store=_name(parameters.store),
        run=run,
        worker="0",
        key=secrets.token_hex(32),
        endpoint=() if name else tuple(endpoint.urls),
        endpoint_block=name,
        model=model.client.model,
        process="{machine} {process}".format(**this_process()),
        workers=workers.workers,
        limits=_shared(limits, workers),
        images=parameters.images,
        is_deployed=bool(deployment.id),
        confined=confined,
    )
    channel = Channel(output, job.key)
    return Crew(
        workers, job, channel, model.client.stats, rows_per_batch(limits, parameters.workers)
    )


def rows_per_batch(limits: Limits, workers: Workers) -> int:
    """Rows of a batch at most: of all that may be in flight, each worker is to have two batches."""
    return min(limits.batch_size, MAX_ROWS // (2 * workers.workers))


def _busy(workers: Workers, limits: Limits) -> Workers:
    """The workers, but no more than there may be requests in flight."""
    most = limits.max_in_flight
    if most == "auto" or most >= workers.workers:
        return workers
    _LOGGER.warning(
        "max_in_flight %s: only %s of %s workers are started", most, most, workers.workers
    )
    return workers.model_copy(update={"workers": most})


def _shared(limits: Limits, workers: Workers) -> Limits:
    """The limits of one of several workers; the first ones start when the servers are up."""
    changed: dict[str, Any] = {"wait": False}
    if isinstance(limits.max_in_flight, int):
        changed["max_in_flight"] = limits.max_in_flight // workers.workers
    return limits.model_copy(update=changed)


def _name(block: object) -> str:
    """The name of a saved block, given by itself or by its name; empty for other blocks."""
    if isinstance(block, Block):
        return block._block_document_name or ""  # no public name for it
    return block if isinstance(block, str) else ""


def _has_secrets(block: Block) -> bool:
    if isinstance(block, VLLMEndpoint):
        return bool(block.headers())
    return isinstance(block, ObjectStore) and block.s3_credentials is not None
