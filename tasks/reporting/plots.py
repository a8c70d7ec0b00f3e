"""Plots of a report: small SVG images as `data:` URIs, each for light and for dark pages."""

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
_LAST_BAR_QUANTILE = 0.995
"""The last bar counts everything beyond it: a few outliers would squeeze the rest into one bar."""


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title: its heading.
        alt: its content in words and numbers.
        light: `data:` URI for light pages.
        dark: `data:` URI for dark pages.
    """

    title: str
    alt: str
    light: str
    dark: str


_INK, _GRID, _FIRST, _SECOND = "#57606f", "#e3e7ee", "#3d63dd", "#e2853a"
_DARK = {_INK: "#a9b2c3", _GRID: "#2b3242", _FIRST: "#7f9cf5", _SECOND: "#f0a868"}
"""Colours on a dark page, replaced in the SVG's text: drawing it a second time is slower."""

_LOCK = threading.Lock()
"""matplotlib's settings are global to the process."""

Draw = Callable[["Axes"], None]


def draw_plots(statistics: Statistics) -> Iterator[Plot]:
    """Draw the plots for which there is data."""
    if statistics.questions.total:
        lengths_by_title = {
            "Question length": statistics.questions,
            "Answer length": statistics.answers,
        }
        for title, lengths in lengths_by_title.items():
            alt = f"{_quantiles(lengths)} characters, {lengths.total:,} in total"
            yield _histograms(title, alt, "characters", "pairs", {"": lengths})
    if statistics.prompt_tokens.total:
        tokens = {"prompt": statistics.prompt_tokens, "completion": statistics.completion_tokens}
        alt = "; ".join(f"{name}: {_quantiles(tally)}" for name, tally in tokens.items())
        yield _histograms("Tokens", f"{alt} tokens a row", "tokens", "rows", tokens)
        alt = f"{_quantiles(statistics.latencies, CENTISECONDS)} seconds"
        seconds = {"": statistics.latencies}
        yield _histograms("Latency", alt, "seconds", "rows", seconds, CENTISECONDS)
    if len(statistics.stored_seconds) > 1:
        yield _throughput(statistics.stored_seconds)


def _histograms(
    title: str, alt: str, unit: str, counted: str, tallies: Mapping[str, Tally], scale: int = 1
) -> Plot:
    """One or two histograms in one plot; the keys of `tallies` are their names in the legend."""

    def draw(axes: "Axes") -> None:
        for colour, (label, tally) in zip((_FIRST, _SECOND), tallies.items(), strict=False):
            _histogram(axes, tally, colour, label, scale)
        axes.set_xlabel(unit)
        axes.set_ylabel(counted)
        if len(tallies) > 1:
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8)

    return _plot(title, alt, draw)


def _throughput(stored_seconds: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Plot:
    """Rows stored per second. Batches are stored at once, so each bar has to span several."""
    end = max(float(stored_seconds[-1]), 1.0)
    bars = int(np.clip(len(np.unique(stored_seconds)) // 3, 1, _BARS))
    counts, edges = np.histogram(stored_seconds, bars, (0.0, end))
    rates = counts / (edges[1] - edges[0])
    alt = (
        f"{len(stored_seconds):,} rows answered in {end:,.0f} seconds: "
        f"{len(stored_seconds) / end:,.1f} rows/s, {rates.max():,.1f} at most"
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
    high = max(tally.quantile(_LAST_BAR_QUANTILE), low + 1)
    step = -(-(high - low + 1) // _BARS)
    edges = np.arange(low, high + step + 1, step)
    values = np.minimum(np.arange(len(tally.counts)), edges[-1] - 1)
    heights, _ = np.histogram(values, edges, weights=tally.counts)
    axes.stairs(heights, edges / scale, fill=True, color=colour, alpha=0.9, label=label)


def _quantiles(tally: Tally, scale: int = 1) -> str:
    median, high = (tally.quantile(share) / scale for share in (0.5, 0.95))
    return f"median {median:,g}, 95 % at most {high:,g}"


def _plot(title: str, alt: str, draw: Draw) -> Plot:
    light = dark = _svg(draw)
    for colour, dark_colour in _DARK.items():
        dark = dark.replace(colour, dark_colour)
    return Plot(title, f"{title}: {alt}", _data_uri(light), _data_uri(dark))


def _svg(draw: Draw) -> str:
    # Imported late because it is slow; not pyplot, which keeps figures alive.
    from matplotlib import rc_context, rcParamsDefault

    # Ignore the user's matplotlibrc, which may require LaTeX, for example.
    with _LOCK, rc_context(rcParamsDefault):
        return _draw_svg(draw)


def _draw_svg(draw: Draw) -> str:
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
