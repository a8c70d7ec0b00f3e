"""What the stub of a vLLM server reads from requests and records of them."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any


class RequestLog:
    """Records requests in a file, so that their counts survive a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, messages: list[dict[str, Any]]) -> None:
        """Record a conversation's last user text, and a digest of the conversation."""
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        with self.path.open("a") as log:
            log.write(json.dumps([user_text(messages), digest]) + "\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each text, and each conversation including its images, was received."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        requests = [json.loads(line) for line in lines]
        return {
            "texts": Counter(text for text, _ in requests),
            "conversations": Counter(digest for _, digest in requests),
        }


def user_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last user turn; where that repeats a request with a command, the command."""
    content = messages[-1]["content"]
    if not isinstance(content, str):
        content = " ".join(part["text"] for part in content if part["type"] == "text")
    text: str = content
    _, mark, command = text.partition("\n\nSTUB ")
    return f"STUB {command}" if mark and len(messages) > 2 else text


def without_images(data: bytes) -> bytes:
    """The JSON of a request with each image's data URI reduced to its type.

    It finds the ends of the URIs only, so that it costs a tenth of parsing the images.
    """
    parts, start = [], 0
    while (uri := data.find(b'"data:image/', start)) >= 0:
        comma = data.find(b",", uri)
        parts.append(data[start:comma])
        start = data.find(b'"', comma)
    return b"".join([*parts, data[start:]])
