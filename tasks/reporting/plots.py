"""Plots of a report: small SVG pictures as `data:` URIs, each for light and dark pages."""

import base64
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .statistics import CENTISECONDS, Statistics, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (3.7, 2.1)
_BARS = 40
_BEYOND = 0.995
"""A few extreme values would press all others into one bar: the last one has all beyond this."""


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        title: what it shows.
        alt: the same in words and numbers.
        light: `data:` URI for light pages.
        dark: the same for dark ones.
    """

    title: str
    alt: str
    light: str
    dark: str


_INK, _GRID, _FIRST, _SECOND = "#57606f", "#e3e7ee", "#3d63dd", "#e2853a"
_DARK = {_INK: "#a9b2c3", _GRID: "#2b3242", _FIRST: "#7f9cf5", _SECOND: "#f0a868"}
"""What these colours become on a dark page: as text in the SVG, drawing takes longer."""

_LOCK = threading.Lock()
"""matplotlib's settings are the process's."""

Draw = Callable[["Axes"], None]


def draw_plots(numbers: Statistics) -> Iterator[Plot]:
    """Draw what there is something to show of."""
    if numbers.questions.total:
        for what, lengths in (("Question", numbers.questions), ("Answer", numbers.answers)):
            alt = f"{_told(lengths)} characters, {lengths.total:,} in all"
            yield _histograms(f"{what} length", alt, "characters", "pairs", {"": lengths})
    if numbers.prompt_tokens.total:
        tokens = {"read": numbers.prompt_tokens, "written": numbers.completion_tokens}
        told = "; ".join(f"{name}: {_told(tally)}" for name, tally in tokens.items())
        yield _histograms("Tokens", f"{told} tokens a row", "tokens", "rows", tokens)
        alt = f"{_told(numbers.latencies, CENTISECONDS)} seconds"
        seconds = {"": numbers.latencies}
        yield _histograms("Latency", alt, "seconds", "rows", seconds, CENTISECONDS)
    if len(numbers.written) > 1:
        yield _throughput(numbers.written)


def _histograms(
    title: str, alt: str, unit: str, counted: str, tallies: Mapping[str, Tally], scale: int = 1
) -> Plot:
    """One or two histograms in one picture, by their name in its legend."""

    def draw(axes: "Axes") -> None:
        for colour, (label, tally) in zip((_FIRST, _SECOND), tallies.items(), strict=False):
            _histogram(axes, tally, colour, label, scale)
        axes.set_xlabel(unit)
        axes.set_ylabel(counted)
        if len(tallies) > 1:
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8)

    return _plot(title, alt, draw)


def _throughput(written: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Plot:
    """Rows stored per second; a batch is stored at once, so that a bar needs a few of them."""
    end = max(float(written[-1]), 1.0)
    bars = int(np.clip(len(np.unique(written)) // 3, 1, _BARS))
    counts, edges = np.histogram(written, bars, (0.0, end))
    rates = counts / (edges[1] - edges[0])
    alt = (
        f"{len(written):,} rows answered in {end:,.0f} seconds: {len(written) / end:,.1f} rows/s, "
        f"{rates.max():,.1f} at most"
    )
    unit, seconds = next(
        (unit, seconds)
        for unit, seconds in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if end >= 3 * seconds or seconds == 1
    )

    def draw(axes: "Axes") -> None:
        axes.stairs(rates, edges / seconds, fill=True, color=_FIRST)
        axes.set_xlabel(f"{unit} since the start")
        axes.set_ylabel("rows/s")

    return _plot("Throughput of the last run", alt, draw)


def _histogram(axes: "Axes", tally: Tally, colour: str, label: str, scale: int) -> None:
    low = int(np.flatnonzero(tally.counts)[0])
    high = max(tally.quantile(_BEYOND), low + 1)
    step = -(-(high - low + 1) // _BARS)
    edges = np.arange(low, high + step + 1, step)
    values = np.minimum(np.arange(len(tally.counts)), edges[-1] - 1)
    heights, _ = np.histogram(values, edges, weights=tally.counts)
    axes.stairs(heights, edges / scale, fill=True, color=colour, alpha=0.9, label=label)


def _told(tally: Tally, scale: int = 1) -> str:
    median, most = (tally.quantile(share) / scale for share in (0.5, 0.95))
    return f"median {median:,g}, 95 % at most {most:,g}"


def _plot(title: str, alt: str, draw: Draw) -> Plot:
    light = dark = _svg(draw)
    for colour, instead in _DARK.items():
        dark = dark.replace(colour, instead)
    return Plot(title, f"{title}: {alt}", _data_uri(light), _data_uri(dark))


def _svg(draw: Draw) -> str:
    # Slow to import. No pyplot: it keeps its figures.
    from matplotlib import rc_context, rcParamsDefault

    # Whatever the user's own plots look like, and ask for: LaTeX, say.
    with _LOCK, rc_context(rcParamsDefault):
        return _drawn(draw)


def _drawn(draw: Draw) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.xaxis.label.set(color=_INK, fontsize=8)
    axes.yaxis.label.set(color=_INK, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"
