"""A preview in a terminal: a column for each style, a band for each row."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...serving.printable import printable
from ...tasks.records import QAPair
from .cells import Preview, PreviewReply, PreviewRow, totals_of

_MAX_TEXT = 1200
"""Characters shown of a raw reply, and of each text of a pair: the page has all of them."""

_MAX_LINES = 30
"""Of such a text."""


def print_preview(preview: Preview, console: Console) -> None:
    """Print the rows of a preview, and the results of each style."""
    for row in preview.rows:
        console.print(_band(row, preview.styles))
    console.print(_totals(preview))


def _band(row: PreviewRow, styles: tuple[str, ...]) -> Table:
    names = ", ".join(image.name for image in row.images)
    title = Text.assemble((_line(names) or "no image", "bold"), "  ", (_line(row.where), "dim"))
    table = Table(
        title=title, title_justify="left", box=box.HORIZONTALS, expand=True, padding=(0, 1)
    )
    for style in styles:
        table.add_column(_line(style), ratio=1, overflow="fold", header_style="cyan")
    table.add_row(*map(_cell, row.cells, styles))
    return table


def _cell(replies: tuple[PreviewReply, ...], style: str) -> RenderableType:
    return Group(*(part for reply in replies for part in _reply(reply, style)))


def _reply(reply: PreviewReply, style: str) -> Iterator[Text]:
    if reply.label and reply.label.partition("@")[0] != style:
        yield Text(_line(reply.label), "cyan dim")  # what a mix has drawn, or the file says
    for pair in reply.pairs:
        yield from _pair(pair, reply.notes(pair))
        yield Text()
    if reply.corrected:
        yield Text("after a correction; the first reply was unusable", "yellow")
    for reason in reply.unanswered:
        yield Text(f"unanswered: {_line(reason)}", "yellow")
    if reply.kind:
        yield Text(f"{reply.kind}: {printable(reply.reason, _MAX_TEXT)}", "yellow")
    if reply.text and not reply.pairs:
        yield Text(f"\n{_lines(reply.text)}", "dim")
    if reply.tokens:
        yield Text(f"{reply.tokens} tokens, {reply.latency:.1f} s", "dim")


def _pair(pair: QAPair, notes: str) -> Iterator[Text]:
    shown = f"  [{_line(notes)}]" if notes else ""
    yield Text.assemble((_lines(pair.question), "bold"), (shown, "dim"))
    for letter, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", pair.options, strict=False):
        is_correct = letter == pair.correct
        yield Text(
            f"{letter}. {_lines(option)}{'  ✓' if is_correct else ''}",
            "green" if is_correct else "",
        )
    if not pair.options:
        yield Text(_lines(pair.answer))
    if pair.reasoning:
        yield Text(_lines(pair.reasoning), "italic dim")


def _totals(preview: Preview) -> Table:
    table = Table(title=Text(_line(f"{preview.dataset}, {preview.model}"), "bold"), box=box.SIMPLE)
    table.add_column("style", overflow="fold", header_style="dim")
    for name in ("answered", "pairs", "distinct", "tokens", "seconds"):
        table.add_column(name, justify="right", header_style="dim")
    for totals in totals_of(preview):
        table.add_row(
            Text(_line(totals.style), "cyan"),
            Text(
                f"{totals.answered} of {totals.rows}",
                "" if totals.answered == totals.rows else "yellow",
            ),
            str(totals.pairs),
            str(totals.distinct),
            f"{totals.tokens:.0f}",
            f"{totals.seconds:.1f}",
        )
    return table


def _line(text: str) -> str:
    return printable(text, 200)


def _lines(text: str) -> str:
    """The text with its line breaks, without what a terminal would act on."""
    lines = text[:_MAX_TEXT].split("\n")[:_MAX_LINES]
    shown = "\n".join(map(printable, lines))
    return shown if len(text) <= _MAX_TEXT and text.count("\n") < _MAX_LINES else f"{shown} ..."
