"""Conversations as the JSON records of each format."""

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from .conversations import Conversation, ConversationImage

JsonRecord = Callable[[Conversation, bool], Mapping[str, Any]]
"""Gives the record of a conversation, and is told whether any conversation has several images."""


def llava_record(conversation: Conversation, has_many: bool) -> Mapping[str, Any]:
    """LLaVA: `image` is a path or, where any record has several, always a list (LLaVA-NeXT)."""
    return {"id": conversation.id, **qwen_record(conversation, has_many)}


def qwen_record(conversation: Conversation, has_many: bool) -> Mapping[str, Any]:
    """Qwen-VL's fine-tuning: as LLaVA without the id; a record without images has no `image`."""
    paths = [image.path for image in conversation.images]
    speakers = (("human", "gpt"),) * len(conversation.pairs)
    turns = [
        {"from": speaker, "value": text}
        for names, texts in zip(speakers, conversation.tagged_turns(), strict=True)
        for speaker, text in zip(names, texts, strict=True)
    ]
    image: Mapping[str, Any] = {"image": paths if has_many else paths[0]} if paths else {}
    return {**image, "conversations": turns}


def messages_record(conversation: Conversation, _has_many: bool) -> Mapping[str, Any]:
    """LLaMA-Factory and ms-swift: `messages`, and `images` as a list."""
    paths = [image.path for image in conversation.images]
    return {"messages": messages_of(conversation.tagged_turns()), "images": paths}


def openai_record(conversation: Conversation, _has_many: bool) -> Mapping[str, Any]:
    """OpenAI's fine-tuning: `messages`, with the images as parts of the first one."""
    messages: list[dict[str, Any]] = messages_of(conversation.turns())
    if conversation.images:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _url(image)}}
            for image in conversation.images
        ]
        messages[0]["content"] = [*parts, {"type": "text", "text": messages[0]["content"]}]
    return {"messages": messages}


def messages_of(turns: Iterator[tuple[str, str]]) -> list[dict[str, Any]]:
    """Turns as messages of a user and an assistant."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _url(image: ConversationImage) -> str:
    if image.data:
        return f"data:{image.mime};base64,{base64.b64encode(image.data).decode('ascii')}"
    return Path(image.path).as_uri() if image.path.startswith("/") else image.path


class JsonFile:
    """A file of records: one a line, or one JSON array.

    Attributes:
        bytes: written so far.
    """

    def __init__(
        self, path: Path, record: JsonRecord, *, has_many: bool, is_array: bool = False
    ) -> None:
        self.bytes = 0
        self._file = path.open("wb")
        self._record = record
        self._has_many = has_many
        self._is_array = is_array

    def add(self, conversation: Conversation) -> None:
        """Write a record."""
        before = b""
        if self._is_array:
            before = b",\n" if self.bytes else b"[\n"
        line = orjson.dumps(self._record(conversation, self._has_many))
        self.bytes += self._file.write(before + line + (b"" if self._is_array else b"\n"))

    def close(self) -> None:
        """Complete the file."""
        if self._is_array:
            self._file.write(b"\n]\n" if self.bytes else b"[]\n")
        self._file.close()
