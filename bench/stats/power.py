"""What a study could have shown, and how much more of it would be enough.

Power is exact for Student's t (the noncentral t distribution), which matters where seeds are few: at 2 seeds the usual
sum of two quantiles promises a sixth too much.
"""

from __future__ import annotations

import math

from scipy.special import nctdtr, nctdtrinc, ndtr

from bench.stats.additive import pooled_df
from bench.stats.effect import Effect, quantile

POWER = 0.8
"""Chance of showing what is true that 'could have shown' means."""
MAX_SEEDS = 1000
"""More seeds than this are not a plan."""
MANY_DF = 1e4
"""Degrees of freedom from which Student's t is taken as normal."""


def power(distance: float, se: float, df: float, alpha: float) -> float:
    """Chance that a one-sided t test at `alpha` shows a true value `distance` beyond its threshold."""
    critical = quantile(alpha, df)
    if df >= MANY_DF:
        return float(ndtr(distance / se - critical))
    return 1.0 - float(nctdtr(df, distance / se, critical))


def room(se: float, df: float, alpha: float, power: float = POWER) -> float:
    """The distance beyond a threshold that a one-sided t test at `alpha` shows with `power`."""
    if df >= MANY_DF:
        return (quantile(alpha, math.inf) + quantile(1 - power, math.inf)) * se
    return float(nctdtrinc(df, 1 - power, quantile(alpha, df))) * se


def detectable(effect: Effect, alpha: float, power: float = POWER) -> float | None:
    """The distance from a threshold that this study would have shown with `power`."""
    if effect.se is None or effect.df <= 0:
        return None
    return room(effect.se, effect.df, alpha, power)


def seeds_needed(distance: float, sd: float, alpha: float, power: float | None = None, arms: int = 1) -> int | None:
    """Seeds at which a t interval over seeds would clear a threshold `distance` away.

    Args:
        distance: of the true mean from the threshold.
        sd: of one seed's paired difference.
        alpha: one-sided error.
        power: chance of success wanted; None asks that the interval clears it if the estimate stays where it is.
        arms: arms that lend each other their noise (`pooled_df`; one is the paired t).

    Returns:
        At least 2; None if more than `MAX_SEEDS` would be needed.
    """
    if distance <= 0:
        return None
    for n in range(2, MAX_SEEDS + 1):
        se, df = sd / math.sqrt(n), pooled_df(arms, n)
        if (quantile(alpha, df) * se if power is None else room(se, df, alpha, power)) <= distance:
            return n
    return None


def items_needed(distance: float, item_variance: float, seed_variance: float, alpha: float) -> float | None:
    """By what factor the items must grow for the interval to clear a threshold `distance` away, seeds unchanged.

    Normal quantile: with this many items their degrees of freedom are large. None where seeds alone are too noisy.
    """
    spare = (distance / quantile(alpha, math.inf)) ** 2 - seed_variance
    return item_variance / spare if distance > 0 and spare > 0 else None


def items_for_margin(margin: float, discordant: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Items that show non-inferiority within `margin` when the true difference is zero and seeds add no noise.

    (z_alpha + z_power)^2 x discordant / margin^2 for paired right-or-wrong answers (Liu et al. 2002, Statistics in
    Medicine 21:231), where `discordant` is the share of items that exactly one of the two models gets right.
    """
    z = quantile(alpha, math.inf) + quantile(1 - power, math.inf)
    return math.ceil(z**2 * discordant / margin**2)
