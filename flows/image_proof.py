"""Proof that the servers see the images, before many rows are asked."""

from collections.abc import Iterator
from itertools import chain

from prefect import get_run_logger

from ..tasks.errors import EndpointError, ImageQAError
from ..tasks.generating.image_tokens import REPLY_SECONDS, image_tokens
from ..tasks.records import Batch
from .open_pass import OpenPass
from .run import Run
from .wording import duration

MANY_ROWS = 1000
"""More pending rows than this are only asked of servers that see the images."""

_MANY_BYTES = 256 << 20
"""Rows that embed more bytes of images are many, too: no more of them are held in memory."""


def prove_images(
    run: Run, current: OpenPass, batches: Iterator[Batch]
) -> tuple[Iterator[Batch], float | None]:
    """Ask a few rows with and without their images if there is a pilot, or many rows are pending.

    None of the batches is in flight.

    Returns:
        The same batches, and the prompt tokens that an image adds, if that is known.

    Raises:
        EndpointError: a server answers without seeing the images.
    """
    pilot = run.parameters.pilot
    total = run.progress.total
    few = total is not None and total <= MANY_ROWS
    if not pilot.image_proof or (few and not pilot.rows):
        return batches, None
    finished = len(current.ledger.rows.index)
    are_known = bool(pilot.rows) or (total is not None and total - finished > MANY_ROWS)
    first: list[Batch] = []
    try:
        are_many = _take_first(batches, 0 if are_known else MANY_ROWS, first)
    except ImageQAError as error:  # the rows before it can be asked
        return chain(first, _failing(error)), None
    return chain(first, batches), _image_tokens(run, current, first) if are_many else None


def _take_first(batches: Iterator[Batch], limit: int, first: list[Batch]) -> bool:
    """Take the batches that tell whether more than `limit` rows are pending; whether so."""
    rows = embedded = 0
    for batch in batches:
        first.append(batch)
        rows += len(batch.prompts)
        embedded += batch.embedded_bytes
        if rows > limit or embedded > _MANY_BYTES:
            return True
    return False


def _failing(error: ImageQAError) -> Iterator[Batch]:
    raise error
    yield  # a generator fails when its first item is asked for


def _image_tokens(run: Run, current: OpenPass, batches: list[Batch]) -> float | None:
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    if not run.checks.requests:
        prompts = [prompt for prompt in prompts if not prompt.given_answer]
        if not prompts:
            return None
    note = f"asking whether the model sees the images, up to {duration(REPLY_SECONDS)}"
    with run.progress.saying(note):
        by_server = image_tokens(run.client, prompts, current.generation_settings)
    blind = [server for server, tokens in by_server.items() if tokens == 0]
    if blind:
        raise EndpointError(
            f"{', '.join(blind)}: the model {run.model} answers without seeing the images, which "
            "add no tokens to its prompts. Serve a model that reads images, with the chat template "
            "of that model; or, if the server sees them and does not count them, use "
            "`--no-image-proof` (pilot.image_proof false)"
        )
    if not by_server:
        get_run_logger().warning(
            "whether the model sees the images was not checked: none of the first rows has an "
            "image that can be used"
        )
    known = [tokens for tokens in by_server.values() if tokens is not None]
    if unknown := [server for server, tokens in by_server.items() if tokens is None]:
        get_run_logger().warning(
            "%s: whether the model sees the images cannot be told, since replies with and without "
            "them do not both say how many tokens the prompt has",
            ", ".join(unknown),
        )
    return sum(known) / len(known) if known else None
