"""Accuracy task by task: a row a task, a mark an arm, a tick at chance."""

from __future__ import annotations

from typing import Any

from bench.report.axes import GRID, INK, MUTED, PAPER, colour, frame, marker, percent_ticks
from bench.report.labels import shorten
from bench.report.panels import Dots


def dots(figure: Any, panel: Dots, height: int) -> None:
    """Paint the panel; marks of one task stand a little apart, so that none hides another."""
    axes = frame(figure, height, left=112, right=14, top=10, bottom=48)
    values = [value for _, chance, marks in panel.rows for value in [*(v for *_, v in marks), *_known(chance)]]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_yticks([])
    for number, (task, chance, marks) in enumerate(panel.rows):
        axes.axhline(number, color=GRID, linewidth=0.8, zorder=1)
        axes.text(-0.03, number, shorten(task, 17), transform=axes.get_yaxis_transform(), fontsize=10, color=INK,
                  ha="right", va="center")  # fmt: skip
        for known in _known(chance):
            axes.plot(
                [known], [number], linestyle="", marker="|", markersize=16, markeredgewidth=1.6, color=MUTED, zorder=2
            )
        for place, (_, style, value) in enumerate(marks):
            middle = number + (0.5 * ((place + 0.5) / len(marks) - 0.5) if len(marks) > 1 else 0.0)
            axes.plot([value], [middle], marker=marker(style), markersize=8, markerfacecolor=PAPER,
                      markeredgecolor=colour(style), markeredgewidth=1.9, linestyle="", zorder=3 + style)  # fmt: skip
    percent_ticks(axes)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]
