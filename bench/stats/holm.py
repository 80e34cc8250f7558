"""Holm's step-down procedure over the claim arms, with confidence bounds that agree with its decisions.

Holm (1979). Bounds after Strassburger & Bretz (2008, Statistics in Medicine 27:4914): where every hypothesis is
rejected, each bound is the better of the threshold and the Bonferroni bound; otherwise a rejected one's bound is the
threshold itself and a retained one's is taken at alpha / (number retained). All bounds hold at once with 1 - alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OneSided:
    """One hypothesis 'at or below the threshold' that small p-values speak against."""

    p: float
    lower: Callable[[float], float]
    """Lower confidence bound at a one-sided error."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What Holm's procedure says of one hypothesis."""

    rejected: bool
    p: float
    """Adjusted p-value."""
    lower: float
    """Lower bound; all of them hold at once."""
    alpha: float
    """One-sided error at which its bound was read."""


def holm(tests: Sequence[OneSided], threshold: float, alpha: float) -> list[Adjusted]:
    """Adjust a family of tests of 'above the threshold' at familywise one-sided error `alpha`."""
    m = len(tests)
    adjusted_p = adjust([test.p for test in tests])
    rejected = [p <= alpha for p in adjusted_p]
    retained = m - sum(rejected)
    found: list[Adjusted] = []
    for test, p, is_rejected in zip(tests, adjusted_p, rejected, strict=True):
        if retained == 0:
            lower, level = max(threshold, test.lower(alpha / m)), alpha / m
        elif is_rejected:
            lower, level = threshold, alpha / m
        else:
            lower, level = test.lower(alpha / retained), alpha / retained
        found.append(Adjusted(is_rejected, p, lower, level))
    return found


def adjust(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values: the running maximum of (m - rank) p, at most 1."""
    m = len(p_values)
    adjusted = [0.0] * m
    largest = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
