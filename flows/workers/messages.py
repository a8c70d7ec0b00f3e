"""What a run and its workers tell each other: batches, what became of them, how the worker is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pybase64

from ...serving.client.stats import ClientStats
from ...tasks import errors
from ...tasks.errors import ImageQAError
from ...tasks.generating.batching import make_batch
from ...tasks.parsing.parse import ParseSettings, pair_parse_settings
from ...tasks.records import Asked, Batch, ImageRef, Kind, Problem, Prompt, ReplyForm
from ...tasks.runs.plugins import find_parser
from ..open_pass import OpenPass


@dataclass(frozen=True)
class Work:
    """How the batches of a pass are answered, parsed and stored.

    Attributes:
        completions: URI of the raw replies.
        parts: folder of the parts in the output.
        parser: name of the parser, which the worker has too.
        required: as in `ParseSettings`, like `user_prompt`.
        user_prompt: what is asked about rows that ask nothing themselves.
        options: as in `GenerationSettings`, like `guided`.
        guided: whether the server can make replies follow a form.
        corrects: whether to ask once more where a reply is unusable.
    """

    completions: str
    parts: str
    parser: str
    required: bool
    user_prompt: str
    options: Mapping[str, Any]
    guided: bool
    corrects: bool

    @classmethod
    def of(cls, current: OpenPass) -> Self | None:
        """The work of a pass; None if a worker could not find its parser, or has another model."""
        parsing, generation = current.parse_settings, current.generation_settings
        work = cls(
            completions=current.completions.uri,
            parts=current.parts_folder,
            parser=parsing.name,
            required=parsing.required,
            user_prompt=parsing.user_prompt,
            options=dict(generation.options),
            guided=generation.guided,
            corrects=generation.fault_of is not None,
        )
        try:
            is_same = work.parsing().label == parsing.label
        except ImageQAError:
            is_same = False
        return work if is_same and not current.is_optional else None

    def parsing(self) -> ParseSettings:
        """How the replies are parsed.

        Raises:
            ImageQAError: the parser is not installed here, or not allowed.
        """
        name, parser = find_parser(self.parser)
        return pair_parse_settings(name, parser, self.required, self.user_prompt)


@dataclass(frozen=True)
class HandedBatch:
    """A batch on its way to a worker; the fields are those of `Batch`."""

    number: int
    prompts: Sequence[Prompt]
    attempts: Sequence[int]
    cache_buster: str
    label: str
    work: Work

    @classmethod
    def of(cls, batch: Batch, work: Work) -> Self:
        """A batch that no request has been sent for."""
        own = (batch.number, batch.prompts, batch.attempts, batch.cache_buster, batch.label)
        return cls(*own, work)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The batch, of its message."""
        prompts = tuple(map(_prompt, plain["prompts"]))
        return cls(**{**plain, "prompts": prompts, "work": Work(**plain["work"])})

    def batch(self) -> Batch:
        """The batch, as the run has it."""
        return make_batch(
            self.number,
            self.prompts,
            self.attempts,
            cache_buster=self.cache_buster,
            label=self.label,
        )


def _prompt(plain: Mapping[str, Any]) -> Prompt:
    asked, problem = plain["asked"], plain["problem"]
    return Prompt(
        **{
            **plain,
            "messages": tuple(plain["messages"]),
            "images": tuple(map(_image, plain["images"])),
            "problem": problem and Problem(**{**problem, "kind": Kind(problem["kind"])}),
            "asked": Asked(**{**asked, "form": ReplyForm(asked["form"])}),
        }
    )


def _image(plain: Mapping[str, Any]) -> ImageRef:
    data = plain["data"]
    return ImageRef(**{**plain, "data": None if data is None else pybase64.b64decode(data)})


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        part: name of the part with its rows; empty if it was not finished.
        time: when the last of its replies was received, in seconds since 1970 (UTC).
        corrections: corrective requests sent.
        corrected: keys of the rows that these made usable.
        error: class and message of what ended it; None if nothing did.
    """

    part: str = ""
    time: float = 0.0
    corrections: int = 0
    corrected: Sequence[str] = ()
    error: tuple[str, str] | None = None

    def check(self) -> None:
        """Raise the error that ended the batch, if one did."""
        if self.error is None:
            return
        name, message = self.error
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, ImageQAError):
            raise kind(message)
        raise RuntimeError(f"{name}: {message}")


def error_of(error: Exception) -> tuple[str, str]:
    """An error as `BatchResult.check` raises it."""
    return type(error).__name__, " ".join(str(error).split())


@dataclass
class WorkerStatus:
    """What a worker says of itself each second.

    Attributes:
        beat: changes each time.
        process: differs if the worker has been started again.
        max_in_flight: how many requests it may have in flight.
        stats: the counts of its client; times are not those of other machines.
        unsent: number of each batch that it has -> its rows that are not sent yet; None while it
            reads the batch.
        notes: what a user should know now.
    """

    beat: float = 0.0
    process: str = ""
    max_in_flight: int = 0
    stats: ClientStats = field(default_factory=ClientStats)
    unsent: Mapping[int, int | None] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The status, of its message."""
        unsent = {int(number): rows for number, rows in plain["unsent"].items()}
        return cls(**{**plain, "stats": ClientStats(**plain["stats"]), "unsent": unsent})


def numbers(names: Iterable[str], prefix: str) -> set[int]:
    """The numbers at the end of names with a prefix."""
    ends = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return {int(end) for end in ends if end.isdecimal()}
