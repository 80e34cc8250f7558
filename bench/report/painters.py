"""Panels painted on matplotlib axes: loss against cost, estimates with intervals.

The others build on this module: accuracy by task in bench.report.dotpainter, what a profile shows in rooflines,
laws and savings against size in lawpainter, quality against depth in depthpainter.

An arm is told apart by marker, line style and a label beside it; colour comes last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.labels import LABEL_CHARACTERS, shorten, spread
from bench.report.numbers import MINUS, THIN
from bench.report.tree import Band, Curves, Dots, Estimate, Forest, Law, Panel, Roofline, Series, Timeline, Tradeoff

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
NAME_CHARACTERS = 28
ROW_PX = 36


def colour(style: int) -> str:
    """The colour of arm number `style`; past the palette it repeats, with another marker."""
    return INK if style == 0 else SERIES[1 + (style - 1) % (len(SERIES) - 1)]


def marker(style: int) -> str:
    """The marker of arm number `style`."""
    return MARKERS[style % len(MARKERS)]


def panel_height(panel: Panel) -> int:
    """Height in pixels at the design width."""
    match panel:
        case Curves() | Roofline() | Timeline() | Band() | Tradeoff():
            return 270
        case Law():
            return 350
        case Forest():
            return 64 + ROW_PX * len(panel.rows)
        case Dots():
            return 64 + 30 * len(panel.rows)


def paint(figure: Any, panel: Panel) -> None:
    """Paint the panel on an empty matplotlib figure of the design size."""
    from bench.report import depthpainter, dotpainter, lawpainter, rooflines  # all build on this module

    height = panel_height(panel)
    match panel:
        case Curves():
            _curves(figure, panel, height)
        case Forest():
            _forest(figure, panel, height)
        case Dots():
            dotpainter.dots(figure, panel, height)
        case Roofline():
            rooflines.roofline(figure, panel, height)
        case Timeline():
            rooflines.timeline(figure, panel, height)
        case Law():
            lawpainter.law(figure, panel, height)
        case Band():
            lawpainter.band(figure, panel, height)
        case Tradeoff():
            depthpainter.tradeoff(figure, panel, height)


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


# --- loss against cost ---------------------------------------------------------------------------


def _curves(figure: Any, panel: Curves, height: int) -> None:
    axes = frame(figure, height, left=34, right=88, top=22, bottom=42)
    ends = [end for series in panel.series for end in series.ends]
    low, high = panel.range
    room = max(0.35 * (high - low), 0.02 * high)
    axes.set_xscale("log")
    axes.set_xlim(0.42 * min(x for x, _ in ends), 1.08 * max(x for x, _ in ends))
    axes.set_ylim(low - 0.45 * room, high + room)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    log_ticks(axes)
    linear_ticks(axes)
    for series in reversed(panel.series):
        _series(axes, series)
    end_labels(axes, panel.series)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)
    figure.text(6 / WIDTH_PX, 1 - 13 / height, panel.y_label, fontsize=9.5, color=MUTED, ha="left", va="center")


def _series(axes: Axes, series: Series) -> None:
    tint, shape = colour(series.style), marker(series.style)
    front = 4 if series.style else 3
    for curve in series.curves:
        axes.plot(*_columns(curve), color=tint, linewidth=0.9, alpha=0.28, zorder=2)
    if len(series.means) > 1:
        line = DASHES[series.style % len(DASHES)]
        axes.plot(*_columns(series.means), color=tint, linewidth=1.5, linestyle=line, zorder=front)
    axes.plot(*_columns(series.ends), linestyle="", marker=shape, markersize=4, color=tint, alpha=0.45, zorder=front,
              markeredgewidth=0)  # fmt: skip
    means = series.means or series.ends
    axes.plot(*_columns(means), linestyle="", marker=shape, markersize=7, markerfacecolor=PAPER, markeredgecolor=tint,
              markeredgewidth=1.8, zorder=front + 1)  # fmt: skip


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def log_ticks(axes: Axes) -> None:
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


def linear_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_tick))


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


# --- estimates with intervals --------------------------------------------------------------------


def _forest(figure: Any, panel: Forest, height: int) -> None:
    axes = frame(figure, height, left=10, right=10, top=20, bottom=44)
    left, right = _forest_limits(panel)
    axes.set_xlim(left, right)
    axes.set_ylim(len(panel.rows), 0)
    axes.set_yticks([])
    for mark in panel.marks:
        style = {"zero": "-", "limit": (0, (5, 2)), "aim": (0, (1, 2))}[mark.kind]
        tint = GRID if mark.kind == "zero" else MUTED
        axes.axvline(mark.value, color=tint, linestyle=style, linewidth=1.1, zorder=1)
    _mark_labels(axes, panel)
    for number, row in enumerate(panel.rows):
        _estimate(axes, number, row, left, right)
    percent_ticks(axes)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)


def _forest_limits(panel: Forest) -> tuple[float, float]:
    """Limits that show every point and mark, and intervals as far as the points' own scale allows."""
    values = [known for row in panel.rows for known in _points(row)]
    marks = [mark.value for mark in panel.marks]
    bounds = [bound for row in panel.rows for bound in (row.low, row.high) if bound is not None]
    low, high = min(values + marks), max(values + marks)
    reach = 2.0 * (high - low) or 1.0
    low = min([low] + [max(bound, low - reach) for bound in bounds])
    high = max([high] + [min(bound, high + reach) for bound in bounds])
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _points(row: Estimate) -> list[float]:
    """The estimate; where there is none, the bounds that are known."""
    return [one for one in ((row.value,) if row.value is not None else (row.low, row.high)) if one is not None]


def _mark_labels(axes: Axes, panel: Forest) -> None:
    """Labels of the marks above the plot, pushed apart sideways."""
    from matplotlib.transforms import blended_transform_factory

    marks = sorted(panel.marks, key=lambda mark: mark.value)
    if not marks:
        return
    above = blended_transform_factory(axes.transData, axes.transAxes)
    pixels = [float(axes.transData.transform((mark.value, 0))[0]) for mark in marks]
    widths = [5.6 * len(mark.label) for mark in marks]
    gaps = [(one + two) / 2 + 6 for one, two in itertools.pairwise(widths)]
    low, high = widths[0] / 2 + 2, WIDTH_PX - widths[-1] / 2 - 2
    for mark, place in zip(marks, spread(pixels, gaps, low, high), strict=True):
        x = float(axes.transData.inverted().transform((place, 0))[0])
        axes.text(x, 1.0, mark.label, transform=above, fontsize=9, color=MUTED, ha="center", va="bottom")


def _estimate(axes: Axes, number: int, row: Estimate, left: float, right: float) -> None:
    """The name and its number on a line, the interval under it."""
    tint, text_y, line_y = colour(row.style), number + 0.30, number + 0.68
    label = shorten(row.name, NAME_CHARACTERS)
    axes.text(0, text_y, label, transform=axes.get_yaxis_transform(), fontsize=10, color=INK, va="center",
              weight="bold", bbox=_halo())  # fmt: skip
    is_known = bool(_points(row))
    shown = row.text if is_known else "not measured"
    axes.text(1, text_y, shown, transform=axes.get_yaxis_transform(), fontsize=10, va="center", ha="right",
              color=INK if is_known else MUTED, bbox=_halo())  # fmt: skip
    if not is_known:
        return
    low = left if row.low is None else max(row.low, left)
    high = right if row.high is None else min(row.high, right)
    axes.plot([low, high], [line_y, line_y], color=tint, linewidth=2.2, solid_capstyle="butt", zorder=3)
    for bound, shown_at, arrow in ((row.low, low, "<"), (row.high, high, ">")):
        open_side = bound is None or bound != shown_at
        shape, size = (arrow, 6) if open_side else ("|", 8)
        axes.plot([shown_at], [line_y], linestyle="", marker=shape, markersize=size, markeredgewidth=1.6, color=tint,
                  zorder=3, clip_on=False)  # fmt: skip
    if row.value is None:
        return
    axes.plot([row.value], [line_y], linestyle="", marker=marker(row.style), markersize=8, markerfacecolor=PAPER,
              markeredgecolor=tint, markeredgewidth=2, zorder=4)  # fmt: skip


def _halo() -> dict[str, Any]:
    """A patch of paper behind text, so that a mark's line does not strike it through."""
    return {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}


def percent_ticks(axes: Axes, *, vertical: bool = False) -> None:
    """A few round ticks along a linear axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(_plain_tick))
