"""Plots of a report: small SVG images as `data:` URIs, each for light and for dark pages.

They are written by hand: importing and running a plotting library would take longer than all else
at the end of a small run.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import escape

from ..storing.key_index import Array
from .statistics import CENTISECONDS, Statistics, Tally

_WIDTH, _HEIGHT = 370, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 358, 20, 168
"""Edges of the area with the bars, in pixels; above it is the legend, around it the labels."""

_X_TICKS, _Y_TICKS = 6, 4
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


@dataclass(frozen=True)
class _Bars:
    """Bars side by side: their heights, and one edge more than there are bars."""

    heights: Array
    edges: Array


_INK, _GRID, _FIRST, _SECOND = "#57606f", "#e3e7ee", "#3d63dd", "#e2853a"
_DARK = {_INK: "#a9b2c3", _GRID: "#2b3242", _FIRST: "#7f9cf5", _SECOND: "#f0a868"}
"""Colours on a dark page, replaced in the SVG's text."""


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
    bars = {name: _histogram(tally, scale) for name, tally in tallies.items()}
    return _plot(title, alt, unit, counted, bars)


def _throughput(stored_seconds: Array) -> Plot:
    """Rows stored per second. Batches are stored at once, so each bar has to span several."""
    end = max(float(stored_seconds[-1]), 1.0)
    count = int(np.clip(len(np.unique(stored_seconds)) // 3, 1, _BARS))
    counts, edges = np.histogram(stored_seconds, count, (0.0, end))
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
    bars_by_name = {"": _Bars(rates, edges / seconds)}
    return _plot(
        "Throughput of the last run", alt, f"{unit} since the start", "rows/s", bars_by_name
    )


def _histogram(tally: Tally, scale: int) -> _Bars:
    low = int(np.flatnonzero(tally.counts)[0])
    high = max(tally.quantile(_LAST_BAR_QUANTILE), low + 1)
    step = -(-(high - low + 1) // _BARS)
    edges = np.arange(low, high + step + 1, step)
    values = np.minimum(np.arange(len(tally.counts)), edges[-1] - 1)
    heights, _ = np.histogram(values, edges, weights=tally.counts)
    return _Bars(heights, edges / scale)


def _quantiles(tally: Tally, scale: int = 1) -> str:
    median, high = (tally.quantile(share) / scale for share in (0.5, 0.95))
    return f"median {median:,g}, 95 % at most {high:,g}"


def _plot(title: str, alt: str, unit: str, counted: str, bars: Mapping[str, _Bars]) -> Plot:
    light = dark = _svg(unit, counted, bars)
    for colour, dark_colour in _DARK.items():
        dark = dark.replace(colour, dark_colour)
    return Plot(title, f"{title}: {alt}", _data_uri(light), _data_uri(dark))


def _svg(unit: str, counted: str, bars: Mapping[str, _Bars]) -> str:
    """A plot as SVG.

    Args:
        unit: of the horizontal axis.
        counted: of the vertical axis.
        bars: one or two rows of bars, by their names in the legend.
    """
    left = min(float(each.edges[0]) for each in bars.values())
    right = max(float(each.edges[-1]) for each in bars.values())
    top = max(float(each.heights.max()) for each in bars.values()) * 1.05

    def x(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        return _BOTTOM - value / top * (_BOTTOM - _TOP)

    parts = []
    for value, text in _ticks(0, top, _Y_TICKS):
        parts.append(f'<path d="M{_LEFT} {y(value):.1f}H{_RIGHT}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 5, y(value) + 3, text, "end"))
    for colour, each in zip((_FIRST, _SECOND), bars.values(), strict=False):
        steps = "".join(
            f"V{y(height):.1f}H{x(edge):.1f}"
            for height, edge in zip(each.heights.tolist(), each.edges[1:].tolist(), strict=True)
        )
        start = f"M{x(each.edges[0]):.1f} {_BOTTOM}"
        parts.append(f'<path d="{start}{steps}V{_BOTTOM}Z" fill="{colour}" fill-opacity=".9"/>')
    parts += [_text(x(value), _BOTTOM + 14, text) for value, text in _ticks(left, right, _X_TICKS)]
    parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 8, unit))
    parts.append(_text(0, 0, counted, place=f"translate(10 {(_TOP + _BOTTOM) / 2}) rotate(-90)"))
    if len(bars) > 1:
        parts += _legend(list(bars))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="10" '
        f'text-anchor="middle" fill="{_INK}">{"".join(parts)}</svg>'
    )


def _ticks(low: float, high: float, count: int) -> Iterator[tuple[float, str]]:
    """Up to `count` + 1 round numbers between two others, with their texts."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(s * power for s in (1, 2, 5, 10) if s * power * count >= high - low)
    digits = max(0, -math.floor(math.log10(step)))
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield number * step, f"{number * step:,.{digits}f}"


def _legend(names: Sequence[str]) -> Iterator[str]:
    for number, (name, colour) in enumerate(zip(names, (_FIRST, _SECOND), strict=True)):
        x = _RIGHT - 70 * (len(names) - number)
        yield f'<rect x="{x}" y="4" width="9" height="9" fill="{colour}"/>'
        yield _text(x + 13, 12, name, "start")


def _text(x: float, y: float, text: str, anchor: str = "", place: str = "") -> str:
    where = f' transform="{place}"' if place else f' x="{x:.1f}" y="{y:.1f}"'
    aligned = f' text-anchor="{anchor}"' if anchor else ""
    return f"<text{where}{aligned}>{escape(text)}</text>"


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"
