"""Two kinds of panel about size: a loss law with its residuals, and a saving against compute with its band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.report.axes import (
    DASHES,
    GRID,
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
from bench.report.panels import Band, Law

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_PX = 62
"""Of the residuals under a law."""


def law(figure: Any, panel: Law, height: int) -> None:
    """Loss on two logarithmic axes, the fitted law as lines, and what it leaves below."""
    axes = frame(figure, height, left=34, right=88, top=22, bottom=42 + STRIP_PX + 26)
    ends = [end for series in panel.series for end in series.ends]
    lines = [point for series in panel.series for point in series.means]
    low, high = min(y for _, y in ends + lines), max(y for _, y in ends + lines)
    left, right = 0.85 * min(x for x, _ in ends), 1.15 * max(x for x, _ in ends)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xticks([], minor=True)
    axes.set_xticks([])
    linear_ticks(axes)
    _no_minor(axes)
    for series in panel.series:
        tint = colour(series.style)
        axes.plot(*zip(*series.means, strict=True), color=tint, linewidth=1.4, zorder=2,
                  linestyle=DASHES[series.style % len(DASHES)])  # fmt: skip
        axes.plot(*zip(*series.ends, strict=True), linestyle="", marker=marker(series.style), markersize=6,
                  markerfacecolor=PAPER, markeredgecolor=tint, markeredgewidth=1.5, zorder=3)  # fmt: skip
    end_labels(axes, panel.series)
    figure.text(6 / WIDTH_PX, 1 - 13 / height, panel.y_label, fontsize=9.5, color=MUTED, ha="left", va="center")
    _residuals(figure, panel, height, (left, right))


def _no_minor(axes: Axes) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _residuals(figure: Any, panel: Law, height: int, limits: tuple[float, float]) -> None:
    axes = frame(figure, height, left=34, right=88, top=height - 42 - STRIP_PX, bottom=42)
    most = max((abs(y) for _, _, y in panel.residuals), default=0.0) or 1.0
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(-1.25 * most, 1.25 * most)
    axes.axhline(0.0, color=MUTED, linewidth=0.9, zorder=1)
    for style, x, y in panel.residuals:
        axes.plot([x, x], [0, y], color=colour(style), linewidth=1.0, alpha=0.6, zorder=2)
        axes.plot([x], [y], linestyle="", marker=marker(style), markersize=4, color=colour(style), zorder=3)
    axes.set_yticks([-most, 0, most], [f"{100 * value:+.2g}".replace("-", "\u2212") for value in (-most, 0, most)])
    log_ticks(axes)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)
    place = 1 - (height - 42 - STRIP_PX - 12) / height
    figure.text(6 / WIDTH_PX, place, "Measured over fitted (%)", fontsize=9.5, color=MUTED, ha="left", va="center")


def band(figure: Any, panel: Band, height: int) -> None:
    """Points with intervals, the line with its band, and where it was carried to."""
    axes = frame(figure, height, left=44, right=16, top=26, bottom=42)
    tint, shape = colour(panel.style), marker(panel.style)
    xs = [point[0] for point in panel.points] + [x for x, *_ in panel.line] + [x for x, *_ in panel.targets]
    axes.set_xscale("log")
    axes.set_xlim(0.6 * min(xs), 1.7 * max(xs))
    axes.set_ylim(*_reach(panel))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for mark in panel.marks:
        style = {"zero": "-", "limit": (0, (5, 2)), "aim": (0, (1, 2))}[mark.kind]
        axes.axhline(mark.value, color=MUTED, linestyle=style, linewidth=1.0, zorder=1)
        axes.text(1.0, mark.value, mark.label, transform=axes.get_yaxis_transform(), fontsize=8.5, color=MUTED,
                  va="bottom", ha="right")  # fmt: skip
    if panel.line:
        grid, middle, low, high = (list(column) for column in zip(*panel.line, strict=True))
        axes.fill_between(grid, low, high, color=tint, alpha=0.14, linewidth=0, zorder=1)
        axes.plot(grid, middle, color=tint, linewidth=1.4, zorder=2)
    for is_target, points in ((False, panel.points), (True, panel.targets)):
        for x, value, low, high in points:
            axes.plot([x, x], [low, high], color=tint, linewidth=1.6, zorder=3, linestyle=":" if is_target else "-")
            axes.plot([x], [value], linestyle="", marker=shape, markersize=7, markeredgecolor=tint, zorder=4,
                      markerfacecolor=tint if is_target else PAPER, markeredgewidth=1.8)  # fmt: skip
    log_ticks(axes)
    percent_ticks(axes, vertical=True)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)
    figure.text(6 / WIDTH_PX, 1 - 12 / height, panel.y_label, fontsize=9.5, color=MUTED, ha="left", va="center")


def _reach(panel: Band) -> tuple[float, float]:
    """Limits that show every point and mark, and intervals as far as twice their range."""
    values = [value for _, value, *_ in (*panel.points, *panel.targets)] + [mark.value for mark in panel.marks]
    low, high = min(values), max(values)
    reach = 2.0 * (high - low) or 10.0
    ends = [end for _, _, *both in (*panel.points, *panel.targets) for end in both]
    low, high = max(min(ends), low - reach), min(max(ends), high + reach)
    low, high = min([low, *values]), max([high, *values])
    room = 0.06 * (high - low)
    return low - room, high + room
