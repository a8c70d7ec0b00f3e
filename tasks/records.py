"""The records passed between the steps: plain and frozen, without I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..serving.types import Completion, Message

Record = Mapping[str, Any]
"""One input record: column name -> value, as in the dataset."""


class Kind(StrEnum):
    """Why a row was quarantined: first the problems of the row itself, then transient ones."""

    BAD_ROW = "bad_row"
    NO_IMAGE = "no_image"
    IMAGE_MISSING = "image_missing"
    IMAGE_REFUSED = "image_refused"
    NOT_AN_IMAGE = "not_an_image"
    IMAGE_BROKEN = "image_broken"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    BAD_REQUEST = "bad_request"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    UNPARSED = "unparsed"
    # transient: a retry may succeed
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    CRASH = "crash"


TRANSIENT = frozenset({Kind.CONNECTION, Kind.TIMEOUT, Kind.SERVER_ERROR, Kind.CRASH})
"""Kinds that the next run retries; for the others, the outcome would be the same."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be answered.

    Attributes:
        kind: the reason.
        message: one line: what is wrong and what to do.
        status: the server's HTTP status, if there was one.
        attempts: number of requests sent for the row.
    """

    kind: Kind
    message: str
    status: int | None = None
    attempts: int = 0


class RowError(Exception):
    """A problem with a single row; other rows are not affected."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(kind, message)


@dataclass(frozen=True, slots=True)
class Row:
    """One input record.

    Attributes:
        index: position in the dataset, from 0.
        record: its columns; empty if the line could not be read.
        where: human-readable location, such as "data.jsonl:17".
        problem: set if the record itself could not be read.
    """

    index: int
    record: Record
    where: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is stored; it is not opened yet.

    Attributes:
        path: a local path or `s3://` URI, absolute or already resolved, or an http(s) URL, which
            may contain a secret; None for embedded bytes.
        data: the encoded image, if the dataset embeds it.
    """

    path: str | None = None
    data: bytes | None = None

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{len(self.data or b'')} embedded bytes"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row ready to be sent: rendered messages, image references and the row key.

    In `messages` an image is a part `{"type": "image", "image": i}`, where i indexes `images`.
    """

    row: int
    key: str
    where: str
    messages: tuple[Message, ...] = ()
    images: tuple[ImageRef, ...] = ()
    problem: Problem | None = None


Reply = Completion | Problem
"""Outcome of one prompt."""


@dataclass(slots=True, eq=False)
class Batch:
    """Pending rows that are generated, parsed and stored together, with their state so far.

    Attributes:
        number: position among the batches of a run, from 1.
        key: identifies the batch by its rows and the number of earlier attempts of each.
        prompts: its rows.
        attempts: how many times each row was quarantined before.
        cache_buster: part of the key in addition to the rows.
        isolated: its rows may crash the server: no other batch runs at the same time, and the rows
            that do are found by bisection.
        replies: row key -> reply; filled while generating, so that a retry of the batch sends only
            the remaining rows.
        unsent: rows not sent to the model yet; 0 means that the batch only waits for replies.
        embedded_bytes: total size of the images embedded in its rows.
    """

    number: int
    key: str
    prompts: tuple[Prompt, ...]
    attempts: tuple[int, ...]
    cache_buster: str = ""
    isolated: bool = False
    replies: dict[str, Reply] = field(default_factory=dict)
    unsent: int = field(init=False)
    embedded_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.unsent = len(self.prompts)
        images = (image for prompt in self.prompts for image in prompt.images)
        self.embedded_bytes = sum(len(image.data or b"") for image in images)

    def __str__(self) -> str:
        return f"{self.number}"

    @property
    def has_all_replies(self) -> bool:
        """Whether every row has a reply."""
        return len(self.replies) >= len(self.prompts)


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question and its answer, both stripped and non-empty."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A finished row.

    Attributes:
        key: the row key.
        text: the raw completion.
        parsed: the parser's result as plain JSON; QA pairs as a list of
            `{"question": ..., "answer": ...}`.
        model: the model name in the server's reply.
        prompt_tokens: tokens of the prompt, images included.
        completion_tokens: tokens of the completion.
        latency: seconds.
        reasoning: the model's reasoning, if the server keeps it apart from the completion.
        lost: QA pairs that the completion seems to have, but that cannot be read.
    """

    key: str
    text: str
    parsed: Any
    model: str
    prompt_tokens: int
    completion_tokens: int
    latency: float
    reasoning: str = ""
    lost: int = 0

    @property
    def pairs(self) -> tuple[QAPair, ...]:
        """The parsed QA pairs; may be empty if none are required.

        Raises:
            TypeError: the parser's result is not a list of QA pairs.
            ValueError: a text cannot be encoded as UTF-8.
        """
        pairs = tuple(QAPair(**pair) for pair in self.parsed)
        "".join(text for pair in pairs for text in (pair.question, pair.answer)).encode()
        return pairs


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be answered, with the reason.

    Attributes:
        key: the row key.
        row: position in the dataset at the time.
        where: human-readable location, such as "data.jsonl:17".
        kind: the reason.
        message: one line: what is wrong and what to do.
        status: the server's HTTP status, if there was one.
        attempts: number of requests sent for the row in this run.
        text: the raw completion, or else the model's reasoning, if there was one.
        attempt: how many times the row was quarantined before.
    """

    key: str
    row: int
    where: str
    kind: Kind
    message: str
    status: int | None = None
    attempts: int = 0
    text: str | None = None
    attempt: int = 0


FinishedRow = Answered | Quarantined
"""Final state of one row."""
