"""What all panels share: colours and marks of arms, axes with few lines, round ticks, names beside last points.

An arm is told apart by marker, line style and a label beside it; colour comes last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.labels import LABEL_CHARACTERS, shorten, spread
from bench.report.numbers import MINUS, THIN
from bench.report.panels import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER = "#1c1f24", "#5d6570", "#dcd8cf", "#fffffe"
SERIES = (INK, "#0b5fa5", "#b8430e", "#0a7457", "#86399c", "#94650a", "#b5175c", "#48617a")
"""One colour an arm; the reference is ink. All have at least 4.5:1 contrast with the paper."""
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--paper"} | {
    colour: f"--s{number}" for number, colour in enumerate(SERIES) if number
}
"""Known colour -> CSS variable that holds it."""
MARKERS = "os^Dvp*X"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (1, 1)), (0, (8, 2)))
WIDTH_PX = 340
"""Design width of a panel; shown at about this size everywhere, so that its text stays readable on a telephone."""
UP = "\u2191"
"""Beside the name of an arm whose last point lies above the plot."""


def colour(style: int) -> str:
    """The colour of arm number `style`; past the palette it repeats, with another marker."""
    return INK if style == 0 else SERIES[1 + (style - 1) % (len(SERIES) - 1)]


def marker(style: int) -> str:
    """The marker of arm number `style`."""
    return MARKERS[style % len(MARKERS)]


def frame(figure: Any, height: int, left: int, right: int, top: int, bottom: int) -> Axes:
    """Axes inside margins given in pixels, with only a bottom line."""
    axes = figure.add_axes(
        (left / WIDTH_PX, bottom / height, 1 - (left + right) / WIDTH_PX, 1 - (top + bottom) / height)
    )
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5, pad=5)
    return axes


# --- ticks ---------------------------------------------------------------------------------------


def log_ticks(axes: Axes) -> None:
    """Up to six round ticks along a logarithmic x axis; one in its middle where no round number lies on it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    left, right = axes.get_xlim()
    decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if left <= step * 10.0**decade <= right]
        if len(ticks) <= 5:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 6)] if ticks else [math.sqrt(left * right)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(short_tick))


def linear_ticks(axes: Axes) -> None:
    """A few round ticks along a linear y axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_tick))


def percent_ticks(axes: Axes, *, vertical: bool = False) -> None:
    """A few round ticks along a linear x axis (or y axis) of percentages."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(_plain_tick))


def _plain_tick(value: float, _: int | None = None) -> str:
    return f"{value:.4g}".replace("-", MINUS)


def short_tick(value: float, _: int | None = None) -> str:
    """A tick: 200 G, 1 P, 0.5, 300."""
    for scale, prefix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if value >= scale * 0.9999:
            return f"{value / scale:.3g}{THIN}{prefix}"
    return f"{value:.3g}"


# --- names ---------------------------------------------------------------------------------------


def end_labels(axes: Axes, series: Sequence[Series]) -> None:
    """Names at the right edge beside each arm's last point, pushed apart so that none overlap."""
    ends = [(max(one.means or one.ends), one) for one in series if one.ends]
    to_pixels: Callable[[float], float] = lambda y: float(axes.transData.transform((axes.get_xlim()[0], y))[1])  # noqa: E731
    bottom, top = to_pixels(axes.get_ylim()[0]), to_pixels(axes.get_ylim()[1])
    gap = min(13.0, (top - bottom) / max(1, len(ends)))
    places = spread([to_pixels(y) for (_, y), _ in ends], gap, bottom, top)
    right = float(axes.transAxes.transform((1, 0))[0])
    back = axes.figure.transFigure.inverted() if axes.figure else None
    assert back is not None
    highest = axes.get_ylim()[1]
    for ((x, y), one), place in zip(ends, places, strict=True):
        start = back.transform(axes.transData.transform((x, min(y, highest))))
        name = shorten(one.name) if y <= highest else f"{shorten(one.name, LABEL_CHARACTERS - 2)} {UP}"
        elbow, label = back.transform((right + 4, place)), back.transform((right + 9, place))
        line = _line((start[0], elbow[0]), (start[1], elbow[1]), color=colour(one.style), linewidth=0.6, alpha=0.6)
        axes.figure.add_artist(line)
        axes.figure.text(label[0], label[1], name, fontsize=10, color=colour(one.style), va="center",
                         weight="bold" if one.style == 0 else "normal")  # fmt: skip


def _line(xs: tuple[float, float], ys: tuple[float, float], **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(xs, ys, zorder=1, **style)
