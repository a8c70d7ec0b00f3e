"""A batch -> replies: image bytes are prepared and sent here, and nowhere else."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from ..serving.client import ChatClient
from ..serving.errors import EndpointError
from ..serving.types import ChatRequest, Completion, Failure, FailureKind, Message, Outcome
from .image_refs import read_image
from .images import ImageSettings, prepare_image
from .records import Batch, Kind, Problem, Prompt, Reply, RowError
from .steps import READERS, ahead

BATCH_RETRIES = 3
"""How often a batch is tried again when its server is gone: after about 2, 4 and 8 seconds."""


class EndpointLostError(EndpointError):
    """The server stopped answering in the middle of a batch; it may come back."""


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are sent.

    Attributes:
        images: limits and size of what is sent.
        options: request options: temperature, max_tokens, ... and further vLLM options.
    """

    images: ImageSettings
    options: Mapping[str, Any]


def _server_may_return(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:  # noqa: ARG001
    """Retry only a lost server, and end the retries here.

    Prefect logs a traceback when it runs out of retries by itself, hence one more below.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, EndpointLostError) and run.run_count <= BATCH_RETRIES


@task(
    name="generate",
    task_run_name="generate-{batch}",
    retries=BATCH_RETRIES + 1,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_server_may_return,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def generate_batch(batch: Batch, client: ChatClient, settings: GenerationSettings) -> list[Reply]:
    """Ask the model for every row of a batch; returns one reply each, in order.

    A retry asks only for the rows that have no reply yet.

    Raises:
        EndpointLostError: the server is gone.
        EndpointError: the server refuses the key, or no longer serves the model.
    """
    lost: list[Failure] = []
    sent: list[Prompt] = []

    def requests() -> Iterator[ChatRequest]:
        pending = (prompt for prompt in batch.prompts if prompt.key not in batch.replies)
        build = partial(build_request, settings=settings)
        with ThreadPoolExecutor(READERS) as pool:
            for prompt, request in ahead(pool, build, pending, READERS):
                if lost:
                    return
                try:
                    ready = request.result()
                except RowError as error:
                    batch.replies[prompt.key] = error.problem
                    continue
                sent.append(prompt)
                yield ready

    def keep(position: int, outcome: Outcome) -> None:
        if isinstance(outcome, Failure) and outcome.kind in _ENDPOINT_FAULTS:
            lost.append(outcome)
        else:
            batch.replies[sent[position].key] = reply_of(outcome)

    client.complete(requests(), keep)
    for failure in lost:
        if failure.retryable:
            raise EndpointLostError(f"the server stopped answering: {failure.message}")
        raise EndpointError(f"the server refuses to answer: {failure.message}")
    return [batch.replies[prompt.key] for prompt in batch.prompts]


_ENDPOINT_FAULTS = {
    FailureKind.CONNECTION,
    FailureKind.UNAVAILABLE,
    FailureKind.AUTH,
    FailureKind.NOT_FOUND,
}
"""What is no row's fault, and stops a batch instead of costing it a row."""


def reply_of(outcome: Outcome) -> Reply:
    """Turn a row's own failure into its problem; a completion stays as it is."""
    if isinstance(outcome, Completion):
        return outcome
    kinds = {
        FailureKind.BAD_REQUEST: Kind.BAD_REQUEST,
        FailureKind.TIMEOUT: Kind.TIMEOUT,
        FailureKind.CONNECTION: Kind.CONNECTION,
    }
    kind = kinds.get(outcome.kind, Kind.SERVER_ERROR)
    return Problem(kind, outcome.message, outcome.status, outcome.attempts)


def build_request(prompt: Prompt, settings: GenerationSettings) -> ChatRequest:
    """Read and prepare a prompt's images and put them where its messages refer to them.

    Raises:
        RowError: the prompt has a problem already, or an image cannot be used.
    """
    if prompt.problem:
        raise RowError(prompt.problem.kind, prompt.problem.message)
    uris = [
        prepare_image(read_image(ref, settings.images.max_file_bytes), settings.images).data_uri()
        for ref in prompt.images
    ]
    messages = [_with_images(message, uris) for message in prompt.messages]
    return ChatRequest(messages, _with_row_seed(settings.options, prompt.key))


def _with_row_seed(options: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Give the row a seed of its own, always the same one.

    With one seed for all rows, all would be drawn alike: every first question about a color.
    """
    if options.get("seed") is None:
        return options
    return {**options, "seed": (int(options["seed"]) + int(key[:8], 16)) % 2**31}


def _with_images(message: Message, uris: list[str]) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    parts = [
        {"type": "image_url", "image_url": {"url": uris[part["image"]]}}
        if part["type"] == "image"
        else part
        for part in content
    ]
    return {**message, "content": parts}
