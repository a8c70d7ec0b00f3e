"""What travels between the steps: plain, frozen, no I/O."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..serving.types import Completion, Message

Record = Mapping[str, Any]
"""One input record: column name -> value, as the dataset holds it."""


class Kind(StrEnum):
    """Why a row was quarantined. The first group is the row's own fault."""

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
    # what may pass when it is tried again
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    CRASH = "crash"


TRANSIENT = frozenset({Kind.CONNECTION, Kind.TIMEOUT, Kind.SERVER_ERROR, Kind.CRASH})
"""Kinds that the next run asks again; for the others, the answer would be the same."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be answered.

    Attributes:
        kind: the reason.
        message: one line that says what is wrong and what to do.
        status: the server's HTTP status, where there was one.
        attempts: requests sent for it.
    """

    kind: Kind
    message: str
    status: int | None = None
    attempts: int = 0


class RowError(Exception):
    """Raised while one row is worked on; costs that row only."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(kind, message)


@dataclass(frozen=True, slots=True)
class Row:
    """One input record.

    Attributes:
        index: position in the dataset, from 0.
        record: its columns; empty where the line could not be read.
        where: the place a person can find it: "data.jsonl:17".
        problem: set where the record itself could not be read.
    """

    index: int
    record: Record
    where: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is; nothing is opened yet.

    Attributes:
        path: a local path or `s3://` URI, absolute or already resolved, or an http(s) URL, which
            may hold a secret; None for embedded bytes.
        data: the encoded image where the dataset embeds it.
    """

    path: str | None = None
    data: bytes | None = None

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{len(self.data or b'')} embedded bytes"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row as it will be asked: rendered messages with image references, and the row key.

    In `messages` an image is a part `{"type": "image", "image": i}`, i into `images`.
    """

    row: int
    key: str
    where: str
    messages: tuple[Message, ...] = ()
    images: tuple[ImageRef, ...] = ()
    problem: Problem | None = None


Reply = Completion | Problem
"""What came of asking one prompt."""


@dataclass(slots=True, eq=False)
class Batch:
    """Pending rows that are generated, parsed and stored together, and what is known of them.

    Attributes:
        number: counts the batches of a run, from 1.
        key: names it by its rows and how often each was asked before.
        prompts: its rows as they will be asked.
        attempts: how many times each row was quarantined before.
        cache_buster: what the key was made with besides the rows.
        isolated: its rows may kill the server: nothing else is asked meanwhile, and they are asked
            in halves.
        replies: row key -> what is known already; filled while generating, so that a retry
            of the batch asks only for the rest.
        cuts: row key -> how many times the server was lost while the row was with it.
        faults: row key -> how many times a gateway gave no reply to the row, and to others it did.
        unsent: rows that the model is still to be asked about; 0 means that the batch only waits.
        embedded_bytes: size of the images that its rows hold themselves.
    """

    number: int
    key: str
    prompts: tuple[Prompt, ...]
    attempts: tuple[int, ...]
    cache_buster: str = ""
    isolated: bool = False
    replies: dict[str, Reply] = field(default_factory=dict)
    cuts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
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
        """Whether it is known of each row what came of asking."""
        return len(self.replies) >= len(self.prompts)


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question and its answer, both stripped and not empty."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A finished row.

    Attributes:
        key: the row key.
        text: the completion as it came.
        parsed: what the parser of the pass made of it, as plain JSON; QA pairs as a list of
            `{"question": ..., "answer": ...}`.
        model: the name the server answered under.
        prompt_tokens: tokens read, images included.
        completion_tokens: tokens written.
        latency: seconds.
    """

    key: str
    text: str
    parsed: Any
    model: str
    prompt_tokens: int
    completion_tokens: int
    latency: float

    @property
    def pairs(self) -> tuple[QAPair, ...]:
        """What was parsed, where that is QA pairs; may be empty where none are required.

        Raises:
            TypeError: it is something else.
            ValueError: a text cannot be written as UTF-8.
        """
        pairs = tuple(QAPair(**pair) for pair in self.parsed)
        "".join(text for pair in pairs for text in (pair.question, pair.answer)).encode()
        return pairs


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be answered, with the reason.

    Attributes:
        key: the row key.
        row: position in the dataset when it was asked.
        where: the place a person can find it.
        kind: why.
        message: one line.
        status: the server's HTTP status, where there was one.
        attempts: requests sent for it in this run.
        text: the raw reply, where there was one.
        attempt: how many times it was quarantined before.
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
"""What became of one row."""
