"""The request of a row as it would be sent, with its images left out."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ...serving.types import ChatRequest, DataURI
from ...tasks.generating.chat_requests import GenerationSettings, build_request
from ...tasks.images.formats import sniff
from ...tasks.records import Prompt, RowError

_DATA_URI = re.compile(r"data:([^;,]{1,100});base64,")


def request_of(prompt: Prompt, model: str, settings: GenerationSettings) -> dict[str, Any]:
    """A row's style, key and request as plain JSON; or the problem for which it is not sent."""
    about = {"row": prompt.row, "where": prompt.where}
    try:
        request = build_request(prompt, settings)
    except RowError as error:
        return {**about, "problem": f"{error.problem.kind}: {error.problem.message}"}
    body = without_images(request, model)
    return {**about, "style": prompt.asked.style, "key": prompt.key, "request": body}


def without_images(request: ChatRequest, model: str) -> dict[str, Any]:
    """The body of a request, with a description in the place of each image's data."""
    messages = [
        {**message, "content": [*map(_part, content)] if isinstance(content, list) else content}
        for message in request.messages
        for content in [message["content"]]
    ]
    return {"model": model, "messages": messages, **request.options}


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    image = part["image_url"]
    return {**part, "image_url": {**image, "url": _described(image["url"])}}


def _described(url: str | DataURI) -> str:
    """The beginning of a data URI, and what its image is."""
    if not isinstance(url, DataURI):
        found = _DATA_URI.match(url)
        if not found:
            return url
        url = DataURI(found[1], base64.b64decode(url[found.end() :]))
    width, height = sniff(url.data).read(url.data).size
    digest = hashlib.sha256(url.data).hexdigest()[:12]
    size = f"{len(url.data) / 1e3:,.1f} kB, {width}x{height}"
    return f"data:{url.mime};base64,... ({size}, sha256 {digest})"
