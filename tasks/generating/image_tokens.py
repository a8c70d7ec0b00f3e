"""How many tokens images add to prompts, asked with and without them before the rows are sent."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...serving.client.client import ChatClient
from ...serving.types import ChatRequest, Completion, Message, Outcome
from ..records import Prompt, RowError
from .chat_requests import GUIDES, GenerationSettings, build_request

ASKED_ROWS = 3
"""Rows that are asked, each with images of its own."""

_MAX_TRIED_ROWS = 32
"""Rows that are looked at to find these: images of some may be broken."""

REPLY_SECONDS = 60.0
"""How long a server may take: its first image may take long."""

_LEFT_OUT = GUIDES | {"max_completion_tokens", "min_tokens", "truncate_prompt_tokens"}
"""Options that do not go with a reply of a single token, or cut off the prompt."""


def image_tokens(
    client: ChatClient, prompts: Iterable[Prompt], settings: GenerationSettings
) -> Mapping[str, float | None]:
    """Ask each server about a few rows with and without their images, for a single token each.

    Args:
        client: of the servers.
        prompts: rows to choose from; those without images are passed over.
        settings: how prompts are sent.

    Returns:
        By the name of the server, the prompt tokens that an image adds on average; 0 if it adds
        none in any row, None if the server's replies do not tell. Empty if no row has an image that
        can be used.

    Raises:
        EndpointError: the client was closed.
        StoreUnavailableError: the images cannot be read at the moment.
    """
    pairs = list(_requests(prompts, settings))
    if not pairs:
        return {}
    numbers = [images for images, *_ in pairs]
    requests = [request for _, *both in pairs for request in both]
    outcomes = client.complete_at_each(requests, REPLY_SECONDS)
    return {server: _tokens_of(numbers, found) for server, found in outcomes.items()}


def _requests(
    prompts: Iterable[Prompt], settings: GenerationSettings
) -> Iterator[tuple[int, ChatRequest, ChatRequest]]:
    """For each row that is asked: how many images it has, and its requests with and without."""
    seen = set()
    asked = 0
    for tried, prompt in enumerate(p for p in prompts if p.images and not p.problem):
        if asked >= ASKED_ROWS or tried >= _MAX_TRIED_ROWS:
            return
        if prompt.images in seen:
            continue
        seen.add(prompt.images)
        try:
            with_images = build_request(prompt, settings)
        except RowError:
            continue
        without = build_request(_without_images(prompt), settings)
        asked += 1
        yield len(prompt.images), _for_one_token(with_images), _for_one_token(without)


def _without_images(prompt: Prompt) -> Prompt:
    return replace(prompt, messages=tuple(map(_text_only, prompt.messages)), images=())


def _text_only(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    texts = [part for part in content if part["type"] != "image"]
    return {**message, "content": texts or ""}


def _for_one_token(request: ChatRequest) -> ChatRequest:
    options: dict[str, Any] = {
        name: value for name, value in request.options.items() if name not in _LEFT_OUT
    }
    return replace(request, options={**options, "max_tokens": 1})


def _tokens_of(numbers: Sequence[int], outcomes: Sequence[Outcome]) -> float | None:
    """The tokens an image adds, from the outcomes of each row with and without its images."""
    added = images = 0
    for number, both in zip(numbers, zip(outcomes[::2], outcomes[1::2], strict=True), strict=True):
        with_images, without = map(_prompt_tokens, both)
        if with_images and without:
            added += max(0, with_images - without)
            images += number
    return added / images if images else None


def _prompt_tokens(outcome: Outcome) -> int:
    """Zero if the server does not say."""
    return outcome.prompt_tokens if isinstance(outcome, Completion) else 0
