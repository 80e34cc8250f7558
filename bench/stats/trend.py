"""How a saving goes with size: ln(multiplier) = c0 + c1 log10(C), weighted, and what it says of a size not trained.

The multiplier is C_reference / C_arm at equal loss. Scales weigh by the inverse of their variance. Two intervals are
formed and the wider end of each is taken:

- within: the line is exact, and each scale's standard error says how well it is known (Satterthwaite 1946);
- between: the scales' scatter about the line is real and the next size scatters as much (prediction interval of
  weighted regression, k - 2 degrees of freedom; Knapp & Hartung 2003, Statistics in Medicine 22:2693).

With three scales the second has one degree of freedom and is very wide. It should be: three points say little about a
line two decades away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.effect import combine, quantile

MIN_SCALES = 3
"""Below this a line has no residual: nothing could speak against it."""


@dataclass(frozen=True, slots=True)
class AtScale:
    """What one scale says."""

    flops: float
    """Of the reference's training."""
    log_multiplier: float
    se: float
    df: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with both ends."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The line, with all that its intervals need."""

    scales: tuple[AtScale, ...]

    def at(self, flops: float, alpha: float) -> Interval:
        """ln multiplier at a size, with its prediction interval at one-sided error `alpha`."""
        return self._combination(np.array([1.0, math.log10(flops)]), alpha, is_prediction=True)

    def slope(self, alpha: float) -> Interval:
        """Change of ln multiplier with each decade of compute."""
        return self._combination(np.array([0.0, 1.0]), alpha, is_prediction=False)

    def _combination(self, wanted: NDArray[np.float64], alpha: float, *, is_prediction: bool) -> Interval:
        x = np.array([[1.0, math.log10(scale.flops)] for scale in self.scales])
        y = np.array([scale.log_multiplier for scale in self.scales])
        weight = np.array([1 / scale.se**2 for scale in self.scales])
        bread = np.linalg.inv(x.T @ (weight[:, None] * x))
        each = wanted @ bread @ x.T * weight  # the estimate is this weighted sum of the scales
        value = float(each @ y)
        se, df = combine([(abs(part) * scale.se, scale.df) for part, scale in zip(each, self.scales, strict=True)])
        assert se is not None
        within = quantile(alpha, df) * se
        left = len(y) - 2
        misfit = y - x @ (bread @ x.T @ (weight * y))
        scatter = float(weight @ misfit**2) / left
        spread = float(wanted @ bread @ wanted) + (1 / float(weight.mean()) if is_prediction else 0.0)
        between = quantile(alpha, left) * math.sqrt(scatter * spread)
        half = max(within, between)
        return Interval(value, value - half, value + half)


def trend(scales: Sequence[AtScale]) -> Trend | None:
    """The line through three scales or more of different compute; None where there are fewer."""
    different = {round(math.log10(scale.flops), 6) for scale in scales}
    usable = len(different) >= MIN_SCALES and all(scale.se > 0 for scale in scales)
    return Trend(tuple(scales)) if usable else None
