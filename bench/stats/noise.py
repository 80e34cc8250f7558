"""What runs that differ by nothing but chance differ by, and from it how far a comparison may be off by chance."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.stats.effect import quantile

LARGEST_EXPONENT = math.log(sys.float_info.max)
"""Beyond it exp() has no float: such noise hides any change."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Scatter of one metric between runs that are alike."""

    sd: float
    """Standard deviation of ln(metric) of one run around its group's mean."""
    df: int
    """Degrees of freedom of `sd`."""

    def floor(self, n: int, alpha: float) -> float:
        """Relative change between two means of `n` paired runs that chance alone exceeds with probability `alpha`.

        exp(t_(1-alpha, df) sqrt(2/n) sd) - 1: the two means differ by a variance of 2 sd^2 / n (Student 1908).
        """
        exponent = quantile(alpha, self.df) * math.sqrt(2 / n) * self.sd
        return math.expm1(exponent) if exponent < LARGEST_EXPONENT else math.inf


def pooled(groups: Mapping[object, Sequence[float]]) -> Noise | None:
    """Pooled within-group scatter of ln(value): sd^2 = sum of squares / sum of (n_g - 1).

    Args:
        groups: values of runs that are alike, for example of one seed; each value above zero.

    Returns:
        None where no group holds two values, or a value has no logarithm.
    """
    squares, df = 0.0, 0
    for values in groups.values():
        if any(value <= 0 for value in values):
            return None
        logs = [math.log(value) for value in values]
        mean = math.fsum(logs) / len(logs) if logs else 0.0
        squares += math.fsum((one - mean) ** 2 for one in logs)
        df += max(0, len(logs) - 1)
    return Noise(math.sqrt(squares / df), df) if df else None
