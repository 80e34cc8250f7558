"""A panel of two linear quantities that are traded for each other: a line an arm, its chosen point filled."""

from __future__ import annotations

from typing import Any

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
    marker,
    percent_ticks,
)
from bench.report.panels import Tradeoff


def tradeoff(figure: Any, panel: Tradeoff, height: int) -> None:
    """Lines through `means`, with `ends` marked as chosen."""
    axes = frame(figure, height, left=34, right=88, top=22, bottom=42)
    points = [point for series in panel.series for point in series.means]
    (left, right), (low, high) = (_limits([point[axis] for point in points]) for axis in (0, 1))
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    percent_ticks(axes)
    linear_ticks(axes)
    for series in panel.series:
        tint, shape = colour(series.style), marker(series.style)
        xs, ys = zip(*series.means, strict=True)
        axes.plot(xs, ys, color=tint, linewidth=1.4, linestyle=DASHES[series.style % len(DASHES)], zorder=3)
        axes.plot(xs, ys, linestyle="", marker=shape, markersize=5, markerfacecolor=PAPER, markeredgecolor=tint,
                  markeredgewidth=1.4, zorder=4)  # fmt: skip
        for x, y in series.ends:
            axes.plot([x], [y], linestyle="", marker=shape, markersize=9, color=tint, zorder=5)
    end_labels(axes, panel.series)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)
    figure.text(6 / WIDTH_PX, 1 - 13 / height, panel.y_label, fontsize=9.5, color=MUTED, ha="left", va="center")


def _limits(values: list[float]) -> tuple[float, float]:
    room = 0.08 * (max(values) - min(values)) or 0.5
    return min(values) - room, max(values) + room
