"""A prompt -> its request: the only step that reads and prepares image bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...serving.types import ChatRequest, Message
from ..images.prepare import ImageSettings, prepare_image
from ..images.reader import ImageReader
from ..records import Prompt, RowError


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are sent.

    Attributes:
        reader: reads the images.
        options: request options: temperature, max_tokens, ... and further vLLM options.
        images: limits and size of what is sent.
        recover: called before a batch is retried: waits for the lost server, or restarts it; raises
            `ImageQAError` if that fails. By default it does nothing: the server only gets the
            retry delay to recover. `expected=True` means that the batch is known to contain a row
            that may crash the server.
    """

    reader: ImageReader
    options: Mapping[str, Any] = field(default_factory=dict)
    images: ImageSettings = field(default_factory=ImageSettings)
    recover: Callable[..., None] = lambda **_: None


def build_request(prompt: Prompt, settings: GenerationSettings, attempt: int = 0) -> ChatRequest:
    """Read and prepare a prompt's images, and insert them where its messages refer to them.

    Each attempt at a row that was quarantined before samples with a different seed.

    Raises:
        RowError: the prompt already has a problem, or an image cannot be used.
    """
    if prompt.problem:
        raise RowError(prompt.problem.kind, prompt.problem.message)
    uris = [
        prepare_image(settings.reader.read(ref), settings.images).data_uri()
        for ref in prompt.images
    ]
    messages = [_with_images(message, uris) for message in prompt.messages]
    return ChatRequest(messages, _with_row_seed(settings.options, prompt.key, attempt))


def _with_row_seed(options: Mapping[str, Any], key: str, attempt: int) -> Mapping[str, Any]:
    """Derive a reproducible seed for each row.

    With one seed for all rows, all completions would be sampled alike: every first question would
    be about a colour.
    """
    if options.get("seed") is None:
        return options
    return {**options, "seed": (int(options["seed"]) + int(key[:8], 16) + attempt) % 2**31}


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
