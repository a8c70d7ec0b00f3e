"""What a preview shows: the rows of a dataset against styles, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...serving.types import Message
from ...tasks.records import Answered, FinishedRow, Kind, Prompt, QAPair
from ...tasks.reporting.row_images import SampledImage


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a prompt, as text.

    Attributes:
        text: its text, with `[image 1]` where it has an image.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class PreviewReply:
    """What the model made of a row in one style.

    Attributes:
        label: name and version of the style that asked, which a mix has drawn.
        prompt: what was asked; empty for a row that cannot be.
        pairs: what the reply was parsed into.
        text: the raw reply; empty if there is none.
        kind: why a run would quarantine the row; empty for an answered one.
        corrected: the first reply, if that was unusable and the model has corrected it.
        unanswered: questions that were asked separately in vain, and why.
        latency: in seconds.
    """

    label: str
    key: str
    prompt: tuple[Said, ...] = ()
    pairs: tuple[QAPair, ...] = ()
    text: str = ""
    kind: str = ""
    reason: str = ""
    corrected: str = ""
    unanswered: tuple[str, ...] = ()
    tokens: int = 0
    latency: float = 0.0

    def notes(self, pair: QAPair) -> str:
        """What is to be said of a pair besides its texts: its turn, and a type of its own."""
        turn = f"turn {pair.turn}" if pair.turn else ""
        kind = "" if pair.type == self.label.partition("@")[0] else pair.type
        return ", ".join(filter(None, (turn, kind)))


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A record of the dataset, in every style.

    Attributes:
        where: its location in the dataset, for people.
        cells: of each style the replies: several, if it asks several questions or samples.
    """

    where: str
    images: tuple[SampledImage, ...]
    cells: tuple[tuple[PreviewReply, ...], ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """Styles side by side.

    Attributes:
        model: the name the model is served under.
        rows: in the order of the dataset.
    """

    dataset: str
    model: str
    styles: tuple[str, ...]
    rows: tuple[PreviewRow, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """A style's results over all rows.

    Attributes:
        rows: how many were asked or could not be.
        answered: how many have a reply that can be used.
        distinct: different questions among them, whatever their case and spacing.
        tokens: of a reply, on average, as are the seconds.
    """

    style: str
    rows: int
    answered: int
    pairs: int
    distinct: int
    tokens: float
    seconds: float


def preview_reply(prompt: Prompt, row: FinishedRow, corrected: str = "") -> PreviewReply:
    """What is shown of a row that is answered or quarantined.

    `corrected` is the first reply, if that was unusable and the second is not.
    """
    label, said = prompt.asked.style, messages_as_text(prompt.messages)
    if not isinstance(row, Answered):
        text, kind = row.text or "", row.kind.value
        return PreviewReply(label, row.key, said, text=text, kind=kind, reason=row.message)
    pairs: tuple[QAPair, ...] = ()
    kind = reason = ""
    try:
        pairs = row.pairs
    except (TypeError, ValueError) as error:  # of a parser of one's own
        kind, reason = Kind.UNPARSED.value, f"the parser gives no QA pairs ({error})"
    return PreviewReply(
        label=label,
        key=row.key,
        prompt=said,
        pairs=pairs,
        text=row.text,
        kind=kind,
        reason=reason,
        corrected=corrected,
        unanswered=tuple(f"{each.question} ({each.message})" for each in row.unanswered),
        tokens=row.completion_tokens,
        latency=row.latency,
    )


def messages_as_text(messages: Sequence[Message]) -> tuple[Said, ...]:
    """The messages of a prompt with its images as `[image 1]`."""
    return tuple(Said(message["role"], _text(message["content"])) for message in messages)


def _text(content: object) -> str:
    if not isinstance(content, list):
        return str(content)
    parts = (
        f"[image {part['image'] + 1}]" if part["type"] == "image" else str(part.get("text", ""))
        for part in content
    )
    return "\n".join(parts)


def totals_of(preview: Preview) -> list[Totals]:
    """The results of each style, in their order."""
    return [_totals(style, preview.rows, number) for number, style in enumerate(preview.styles)]


def _totals(style: str, rows: Sequence[PreviewRow], number: int) -> Totals:
    replies = [reply for row in rows for reply in row.cells[number]]
    answered = [reply for reply in replies if not reply.kind]
    pairs = [pair for reply in answered for pair in reply.pairs]
    count = max(len(answered), 1)
    return Totals(
        style=style,
        rows=len(replies),
        answered=len(answered),
        pairs=len(pairs),
        distinct=len({" ".join(pair.question.casefold().split()) for pair in pairs}),
        tokens=sum(reply.tokens for reply in answered) / count,
        seconds=sum(reply.latency for reply in answered) / count,
    )
