"""Every kind of panel painted: loss against cost and estimates with intervals here, the others in their own modules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.report import depthpainter, dotpainter, lawpainter, rooflines
from bench.report.axes import (
    DASHES,
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH_PX,
    colour,
    end_labels,
    frame,
    linear_ticks,
    log_ticks,
    marker,
    percent_ticks,
)
from bench.report.labels import shorten, spread
from bench.report.panels import Band, Curves, Dots, Estimate, Forest, Law, Panel, Roofline, Series, Timeline, Tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME_CHARACTERS = 28
ROW_PX = 36


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
    """Limits that show every point and mark, and intervals as far as the points' own scale allows.

    What is known on one side only sets no scale beside estimates: a bound of hundreds of percent would press them flat.
    """
    values = [row.value for row in panel.rows if row.value is not None]
    values = values or [known for row in panel.rows for known in _points(row)]
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
