"""Panels of a profile: operators under the machine's roofline, and memory over time."""

from __future__ import annotations

from typing import Any

from bench.report.axes import (
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH_PX,
    colour,
    frame,
    linear_ticks,
    log_ticks,
    marker,
    short_tick,
)
from bench.report.panels import Roofline, Timeline

LABELLED = 7
"""Operators told apart by marker and colour; the rest are small grey dots."""
ROOM = 2.0
"""Space around the outermost points, as a factor."""


def roofline(figure: Any, panel: Roofline, height: int) -> None:
    """FLOP/s against FLOPs a byte, both logarithmic; the roof is the lower of bandwidth and peak."""
    from matplotlib.ticker import FuncFormatter

    axes = frame(figure, height, left=44, right=112, top=22, bottom=42)
    ridge = panel.peak_flops_per_s / panel.bytes_per_s
    xs = [x for _, x, _ in panel.operators] + [ridge]
    low, high = min(xs) / ROOM, max(xs) * ROOM
    rates = [y for *_, y in panel.operators] + [low * panel.bytes_per_s]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(rates) / ROOM, panel.peak_flops_per_s * ROOM)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.plot(
        [low, ridge, high],
        [low * panel.bytes_per_s, panel.peak_flops_per_s, panel.peak_flops_per_s],
        color=INK, linewidth=1.6, zorder=2,
    )  # fmt: skip
    for number, (name, x, y) in enumerate(panel.operators):
        if number >= LABELLED:
            axes.plot([x], [y], linestyle="", marker="o", markersize=3, color=MUTED, zorder=3)
            continue
        axes.plot([x], [y], linestyle="", marker=marker(number), markersize=7, markerfacecolor=PAPER,
                  markeredgecolor=colour(number), markeredgewidth=1.8, zorder=4)  # fmt: skip
        place = 1 - (40 + 22 * number) / height
        key = figure.add_axes((1 - 104 / WIDTH_PX, place - 8 / height, 12 / WIDTH_PX, 16 / height))
        key.set_axis_off()
        key.plot([0.5], [0.5], linestyle="", marker=marker(number), markersize=6, markerfacecolor=PAPER,
                 markeredgecolor=colour(number), markeredgewidth=1.6)  # fmt: skip
        figure.text(1 - 88 / WIDTH_PX, place, _short_name(name), fontsize=8.5, color=colour(number), va="center")
    log_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(short_tick))
    axes.minorticks_off()
    axes.set_xlabel("FLOPs a byte", fontsize=9.5, loc="left", labelpad=6)
    figure.text(6 / WIDTH_PX, 1 - 13 / height, "FLOP/s", fontsize=9.5, color=MUTED, ha="left", va="center")


def _short_name(name: str) -> str:
    """`lmopt::causal_attention_backward` -> `causal_atten…`."""
    plain = name.rpartition("::")[2].lstrip("_")
    return plain if len(plain) <= 15 else plain[:14] + "\u2026"


def timeline(figure: Any, panel: Timeline, height: int) -> None:
    """A filled line from the first moment to the last."""
    axes = frame(figure, height, left=44, right=14, top=22, bottom=42)
    xs, ys = [x for x, _ in panel.points], [y for _, y in panel.points]
    axes.set_xlim(min(xs), max(xs) or 1.0)
    axes.set_ylim(min(0.0, min(ys)), 1.08 * max(ys) or 1.0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.fill_between(xs, ys, color=colour(1), alpha=0.15, linewidth=0)
    axes.plot(xs, ys, color=colour(1), linewidth=1.1)
    linear_ticks(axes)
    axes.set_xlabel(panel.x_label, fontsize=9.5, loc="left", labelpad=6)
    figure.text(6 / WIDTH_PX, 1 - 13 / height, panel.y_label, fontsize=9.5, color=MUTED, ha="left", va="center")
