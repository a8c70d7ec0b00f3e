"""The records passed between the steps: plain data without I/O, frozen except for `Batch`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

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
        sample: number among the rows that ask the same about the same record, from 0.
        question: what is asked about it instead of its conversation, if not empty.
        pair: the QA pair of the record that a check is about.
    """

    index: int
    record: Record
    where: str
    problem: Problem | None = None
    sample: int = 0
    question: str = ""
    pair: "QAPair | None" = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is stored; it is not opened yet.

    Attributes:
        path: a local path or `s3://` URI, absolute or already resolved, or an http(s) URL, which
            may contain a secret; None for embedded bytes.
        data: the encoded image, if the dataset embeds it.
        version: of a local file when it was found, see `file_version`; empty if unknown. What is
            sent to the model must be of this version.
    """

    path: str | None = None
    data: bytes | None = None
    version: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{len(self.data or b'')} embedded bytes"


class ReplyForm(StrEnum):
    """What a reply consists of, which decides how it is parsed."""

    PAIRS = "pairs"
    """One or several question-answer pairs, which stand on their own."""
    DIALOGUE = "dialogue"
    """Question-answer pairs that follow from one another, in order."""
    MULTIPLE_CHOICE = "multiple_choice"
    """A question with lettered options, and the letter of the right one."""
    ANSWER = "answer"
    """The answer to the question that was asked, and nothing else."""
    QUESTIONS = "questions"
    """Questions without answers: another pass answers them."""
    GIVEN = "given"
    """The answer that the row itself has to its question: the model is not asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row was asked, as far as parsing its reply and its exports need to know.

    Attributes:
        question: the text of the user's last message.
        style: name and version of the style, such as "short@1"; empty for one without a version.
        form: what the reply consists of.
        type: the type of question asked for, such as "counting"; empty if the model may choose.
        language: the language asked for; empty if none was.
    """

    question: str = ""
    style: str = ""
    form: ReplyForm = ReplyForm.PAIRS
    type: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row ready to be sent: rendered messages, image references and the row key.

    In `messages` an image is a part `{"type": "image", "image": i}`, where i indexes `images`:
    those of the row, then those of a style's examples. An answer that the row itself has is the
    last message.

    Attributes:
        asked: what the messages ask for.
        options: request options of this row only, which constrain the form of its reply.
    """

    row: int
    key: str
    where: str
    messages: tuple[Message, ...] = ()
    images: tuple[ImageRef, ...] = ()
    problem: Problem | None = None
    asked: Asked = Asked()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given_answer(self) -> str:
        """The answer that the row itself has; empty if the model is asked."""
        return self.messages[-1]["content"] if self.asked.form is ReplyForm.GIVEN else ""


Reply = Completion | Problem
"""Outcome of one prompt."""


def is_transient(reply: Reply) -> bool:
    """Whether asking again may give another reply."""
    return isinstance(reply, Problem) and reply.kind in TRANSIENT


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
        settled: keys of the rows whose reply is final; others may be asked once more.
        corrections: corrective requests sent.
        corrected: row key -> the unusable text that the reply to a corrective request replaced.
        unsent: rows not sent to the model yet; 0 means that the batch only waits for replies.
        embedded_bytes: total size of the images embedded in its rows.
        label: of its pass, for the names of task runs; empty for the main pass.
    """

    number: int
    key: str
    prompts: tuple[Prompt, ...]
    attempts: tuple[int, ...]
    cache_buster: str = ""
    isolated: bool = False
    replies: dict[str, Reply] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    corrections: int = 0
    corrected: dict[str, str] = field(default_factory=dict)
    label: str = ""
    unsent: int = field(init=False)
    embedded_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.unsent = len(self.prompts)
        images = (image for prompt in self.prompts for image in prompt.images)
        self.embedded_bytes = sum(len(image.data or b"") for image in images)

    def __str__(self) -> str:
        return f"{self.label}-{self.number}" if self.label else f"{self.number}"

    @property
    def has_all_replies(self) -> bool:
        """Whether every row has a reply."""
        return len(self.replies) >= len(self.prompts)


_MAX_TURN = 2**31 - 1


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question and its answer, both stripped and non-empty.

    Attributes:
        question: without its options.
        answer: of multiple choice, the text of the right option. Empty only for a question that
            another pass answers.
        type: type of the question, such as "counting"; empty if it is not known.
        options: of multiple choice, the texts of the options in order, without their letters.
        correct: of multiple choice, the letter of the right option, such as "B".
        turn: position in a dialogue, from 1; 0 for a pair that stands on its own.
        language: language of the pair, as it was asked for or as the reply says.
        reasoning: why the answer is right, if the reply says so.
    """

    question: str
    answer: str
    type: str = ""
    options: tuple[str, ...] = ()
    correct: str = ""
    turn: int = 0
    language: str = ""
    reasoning: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The pair of its fields as plain JSON.

        Raises:
            TypeError: the fields are not those of a pair.
            ValueError: a text cannot be encoded as UTF-8, or the turn is no number of one.
        """
        pair = cls(**{**plain, "options": tuple(plain.get("options", ()))})
        own = (pair.question, pair.answer, pair.type, pair.correct, pair.language)
        "".join((*own, pair.reasoning, *pair.options)).encode()
        if not 0 <= pair.turn <= _MAX_TURN:
            raise ValueError("no position in a dialogue")
        return pair


@dataclass(frozen=True, slots=True)
class Answered:
    """A finished row.

    Attributes:
        key: the row key.
        text: the raw completion.
        parsed: the parser's result as plain JSON; QA pairs as a list of
            `{"question": ..., "answer": ...}`, with the other fields of `QAPair` that are set.
        model: the model name in the server's reply.
        prompt_tokens: tokens of the prompt, images included.
        completion_tokens: tokens of the completion.
        latency: seconds.
        reasoning: the model's reasoning, if the server keeps it apart from the completion.
        lost: QA pairs that the completion seems to have, but that cannot be read.
        style: name and version of the style that asked, such as "short@1".
        unanswered: its questions that another pass could not answer.
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
    style: str = ""
    unanswered: "tuple[Quarantined, ...]" = ()

    @property
    def pairs(self) -> tuple[QAPair, ...]:
        """The parsed QA pairs; may be empty if none are required.

        Raises:
            TypeError: the parser's result is not a list of QA pairs.
            ValueError: a text cannot be encoded as UTF-8, or a turn is no number of one.
        """
        return tuple(map(QAPair.from_plain, self.parsed))


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
        question: if it is only one question of a row, that one.
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
    question: str = ""


FinishedRow = Answered | Quarantined
"""Final state of one row."""
