"""What is plotted, as plain data: one class a kind of panel. Painters draw it, and `alt` says it in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["plain", "good", "bad", "open", "none"]
"""good: supported, saves. bad: refuted, costs. open: inconclusive, unclear. none: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One arm in a plot. `style` is its number: marker, line and colour follow from it; 0 is the reference."""

    name: str
    style: int
    ends: tuple[tuple[float, float], ...]
    """(cost, final loss) of each finished training."""
    means: tuple[tuple[float, float], ...] = ()
    """Mean over seeds at each horizon, joined by a line where there are several."""
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Loss while training, one line a seed, drawn faint."""


BEYOND = 3.0
"""Times the lowest end: what ended higher would press all other curves flat, so it lies beyond the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Loss against a cost on a logarithmic axis."""

    id: str
    title: str
    x_label: str
    y_label: str
    unit: str
    series: tuple[Series, ...]
    alt: str
    missing: str | None = None
    """Why there is nothing to draw."""

    @property
    def range(self) -> tuple[float, float]:
        """The lowest end, and the highest that is shown."""
        ends = [y for series in self.series for _, y in series.ends]
        return min(ends), max(y for y in ends if y <= max(BEYOND * min(ends), min(ends)))

    @property
    def beyond(self) -> tuple[str, ...]:
        """Arms of which an end lies above what is shown."""
        return tuple(one.name for one in self.series if any(y > self.range[1] for _, y in one.ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical reference line with its label."""

    value: float
    label: str
    kind: Literal["zero", "limit", "aim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One row of a forest plot: a point with its interval. An open bound is None."""

    name: str
    text: str
    style: int
    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Estimates with intervals above one shared axis (in percent or percentage points)."""

    id: str
    title: str
    x_label: str
    rows: tuple[Estimate, ...]
    marks: tuple[Mark, ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """One row a task: a dot an arm, and a tick where guessing would be."""

    id: str
    title: str
    x_label: str
    rows: tuple[tuple[str, float | None, tuple[tuple[str, int, float], ...]], ...]
    """(task, chance, ((arm, style, value), ...))"""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Operators by how many FLOPs they do a byte, under the lines that this machine cannot exceed."""

    id: str
    title: str
    peak_flops_per_s: float
    bytes_per_s: float
    operators: tuple[tuple[str, float, float], ...]
    """(name, FLOPs a byte, FLOP/s), the longest running first."""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A quantity over time."""

    id: str
    title: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Losses on two logarithmic axes with a fitted law, and below what it leaves."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    """One a size: `ends` are what was measured, `means` the fitted line."""
    residuals: tuple[tuple[int, float, float], ...]
    """(style, cost, measured over fitted - 1)"""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A saving in percent against compute: points with intervals, a line with its band, and where it is carried to."""

    id: str
    title: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float, float, float], ...]
    """(cost, saving, low, high) of what was measured."""
    line: tuple[tuple[float, float, float, float], ...]
    """The same of the fitted line."""
    targets: tuple[tuple[float, float, float, float], ...]
    """The same where nothing was trained."""
    marks: tuple[Mark, ...]
    style: int
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Two quantities on linear axes, one given up for the other."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    """One an arm: `means` are its points in order, `ends` those that were chosen."""
    alt: str
    missing: str | None = None


Panel = Curves | Forest | Dots | Roofline | Timeline | Law | Band | Tradeoff
