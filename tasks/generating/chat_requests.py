"""A prompt -> its request: the only step that reads and prepares image bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.types import ChatRequest, Completion, DataURI, Message, Outcome
from ..images.prepare import ImageSettings, PreparedImage
from ..images.reader import ImageReader
from ..prompting.correction import Correction, corrective_messages
from ..records import Asked, Prompt, RowError


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are sent.

    Attributes:
        reader: reads the images.
        options: request options: temperature, max_tokens, ... and further vLLM options.
        images: limits and size of what is sent.
        fault_of: what is wrong with a complete reply, as the model is told; empty for one that is
            usable, or that asking again would not mend. None to ask no row again for that reason.
        known_reply: the outcome for a row key where it is known without a request, as in the
            results of batch files; else None.
        guided: whether the server can make replies follow a form; if not, no request asks for it.
    """

    reader: ImageReader
    options: Mapping[str, Any] = field(default_factory=dict)
    images: ImageSettings = field(default_factory=ImageSettings)
    fault_of: Callable[[Completion, Asked], str] | None = None
    known_reply: Callable[[str], Outcome | None] | None = None
    guided: bool = True


def build_request(
    prompt: Prompt,
    settings: GenerationSettings,
    attempt: int = 0,
    *,
    images: Sequence[PreparedImage] | None = None,
    unguided: bool = False,
    correction: Correction | None = None,
) -> ChatRequest:
    """Read and prepare a prompt's images, and insert them where its messages refer to them.

    Args:
        prompt: the row.
        settings: how prompts are sent.
        attempt: how many times the row was quarantined before; each samples with another seed.
        images: the prompt's images, if they are prepared already.
        unguided: whether to leave the form of the reply free, and to sample with another seed.
        correction: what is wrong with the reply that the row has got; it is asked again, and
            samples with another seed and temperature.

    Raises:
        RowError: the prompt already has a problem, or an image cannot be used.
    """
    if prompt.problem:
        raise RowError(prompt.problem.kind, prompt.problem.message)
    prepared: Sequence[PreparedImage] = images or [
        settings.reader.prepare(ref, settings.images) for ref in prompt.images
    ]

    def image_of(part: Mapping[str, Any]) -> PreparedImage:
        number: int = part["image"]
        if change := part.get("change"):
            ref, image = prompt.images[number], prepared[number]
            return settings.reader.changed(ref, image, change, settings.images)
        return prepared[number]

    messages: Sequence[Message] = prompt.messages
    options = request_options(prompt, settings)
    if unguided:
        options = _without_guides(options)
        attempt += _UNGUIDED_ATTEMPT
    if correction:
        messages = corrective_messages(messages, prompt.asked, correction)
        options["temperature"] = corrective_temperature(options.get("temperature"))
        attempt += _CORRECTIVE_ATTEMPT
    return ChatRequest(
        [_with_images(message, image_of) for message in messages],
        _with_row_seed(options, prompt.key, attempt),
    )


def images_at_once(prompt: Prompt, settings: GenerationSettings) -> list[PreparedImage] | None:
    """A prompt's prepared images; None if one takes waiting or decoding.

    Raises:
        RowError: an image cannot be used.
    """
    if any(map(_has_changes, prompt.messages)):
        return None
    images = []
    for ref in prompt.images:
        if (image := settings.reader.prepare_at_once(ref, settings.images)) is None:
            return None
        images.append(image)
    return images


GUIDES = frozenset({"response_format", "structured_outputs"})
"""Request options that constrain the form of a reply."""


def request_options(prompt: Prompt, settings: GenerationSettings) -> dict[str, Any]:
    """The options of a prompt's request, before it is asked once more."""
    options = {**settings.options, **prompt.options}
    return options if settings.guided else _without_guides(options)


def _without_guides(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in GUIDES}


_UNGUIDED_ATTEMPT = 1 << 16
_CORRECTIVE_ATTEMPT = 1 << 17
"""Added to the attempt of a request that asks once more, so that no other attempt has its seed."""

_DEFAULT_TEMPERATURE = 1.0
"""Of a server that is given none."""


def corrective_temperature(temperature: float | None) -> float:
    """The temperature at which a row is asked again: 0.3 more, but at least 0.5 and at most 1.

    A model that is asked again at a low temperature repeats itself; above 1, more and more replies
    are unusable because of the temperature itself.
    """
    known = _DEFAULT_TEMPERATURE if temperature is None else temperature
    return round(min(max(known + 0.3, 0.5), 1.0), 6)


def _with_row_seed(options: Mapping[str, Any], key: str, attempt: int) -> Mapping[str, Any]:
    """Derive a reproducible seed for each row.

    With one seed for all rows, all completions would be sampled alike: every first question would
    be about a colour.
    """
    if options.get("seed") is None:
        return options
    return {**options, "seed": (int(options["seed"]) + int(key[:8], 16) + attempt) % 2**31}


def _has_changes(message: Message) -> bool:
    content = message["content"]
    return not isinstance(content, str) and any("change" in part for part in content)


def _with_images(
    message: Message, image_of: Callable[[Mapping[str, Any]], PreparedImage]
) -> Message:
    """A message with the images of its parts."""

    def sent(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image":
            return part
        image = image_of(part)
        return {"type": "image_url", "image_url": {"url": DataURI(image.mime, image.data)}}

    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": list(map(sent, content))}
