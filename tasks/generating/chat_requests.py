"""A prompt -> its request: the only step that reads and prepares image bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...serving.types import ChatRequest, Message
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..records import Prompt, RowError


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are sent.

    Attributes:
        reader: reads the images.
        options: request options: temperature, max_tokens, ... and further vLLM options.
        images: limits and size of what is sent.
    """

    reader: ImageReader
    options: Mapping[str, Any] = field(default_factory=dict)
    images: ImageSettings = field(default_factory=ImageSettings)


def build_request(
    prompt: Prompt, settings: GenerationSettings, attempt: int = 0, *, unguided: bool = False
) -> ChatRequest:
    """Read and prepare a prompt's images, and insert them where its messages refer to them.

    Args:
        prompt: the row.
        settings: how prompts are sent.
        attempt: how many times the row was quarantined before; each samples with another seed.
        unguided: whether to leave the form of the reply free, and to sample with another seed.

    Raises:
        RowError: the prompt already has a problem, or an image cannot be used.
    """
    if prompt.problem:
        raise RowError(prompt.problem.kind, prompt.problem.message)
    uris = [settings.reader.prepare(ref, settings.images).data_uri() for ref in prompt.images]
    messages = [_with_images(message, uris) for message in prompt.messages]
    options = settings.options
    if unguided:
        options = {name: value for name, value in options.items() if name not in _GUIDES}
        attempt += _UNGUIDED_ATTEMPT
    return ChatRequest(messages, _with_row_seed(options, prompt.key, attempt))


_GUIDES = {"response_format", "structured_outputs"}
"""Options that constrain the form of a reply."""

_UNGUIDED_ATTEMPT = 1 << 16
"""Added to the attempt of an unguided request, so that no other attempt has its seed."""


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
