"""What a study could have shown, and how much more of it would be enough."""

from __future__ import annotations

import math

from bench.stats.effect import Effect, quantile

POWER = 0.8
"""Chance of showing what is true that 'could have shown' means."""
MAX_SEEDS = 1000
"""More seeds than this are not a plan."""


def detectable(effect: Effect, alpha: float, power: float = POWER) -> float | None:
    """The distance from a threshold that this study would have shown with `power`: (t_alpha + t_power) x se.

    Chow, Shao & Wang (2008), section 3.2, for a one-sample one-sided test.
    """
    if effect.se is None or effect.df <= 0:
        return None
    return (quantile(alpha, effect.df) + quantile(1 - power, effect.df)) * effect.se


def seeds_needed(distance: float, sd: float, alpha: float, power: float | None = None) -> int | None:
    """Seeds at which a paired t interval would clear a threshold `distance` away.

    Args:
        distance: of the true mean from the threshold.
        sd: of one seed's paired difference.
        alpha: one-sided error.
        power: chance of success wanted; None asks that the interval clears it if the estimate stays where it is.

    Returns:
        At least 2; None if more than `MAX_SEEDS` would be needed.
    """
    if distance <= 0:
        return None
    for n in range(2, MAX_SEEDS + 1):
        needed = quantile(alpha, n - 1) + (quantile(1 - power, n - 1) if power is not None else 0.0)
        if needed * sd / math.sqrt(n) <= distance:
            return n
    return None


def items_needed(distance: float, item_variance: float, seed_variance: float, alpha: float) -> float | None:
    """By what factor the items must grow for the interval to clear a threshold `distance` away, seeds unchanged.

    Normal quantile: with this many items their degrees of freedom are large. None where seeds alone are too noisy.
    """
    room = (distance / quantile(alpha, math.inf)) ** 2 - seed_variance
    return item_variance / room if distance > 0 and room > 0 else None


def items_for_margin(margin: float, discordant: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Items that show non-inferiority within `margin` when the true difference is zero and seeds add no noise.

    (z_alpha + z_power)^2 x discordant / margin^2 for paired right-or-wrong answers (Liu et al. 2002, Statistics in
    Medicine 21:231), where `discordant` is the share of items that exactly one of the two models gets right.
    """
    z = quantile(alpha, math.inf) + quantile(1 - power, math.inf)
    return math.ceil(z**2 * discordant / margin**2)
