"""Paired differences with items and seeds both drawn at random and crossed: every model answers every item.

D[s, i] = mu + seed_s + item_i + residual_si. The grand mean has variance (MS_seed + MS_item - MS_residual) / (n I),
the quasi-F of Clark (1973) and Cornfield & Tukey (1956), with degrees of freedom after Satterthwaite (1946). Works on
fractional scores. Items of one passage are one cluster: sums over clusters take the place of items (Cameron & Miller
2015, equation 6), and a task whose items all stand alone gives the same as without.

A mean over several tasks (strata, fixed) is sum_t w_t mean_t: seeds are shared by the tasks, items are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.effect import Effect, mean_of, quantile

Floats = NDArray[np.float64]

FEW_SEEDS = 4
"""Below this many seeds Satterthwaite's df trust a variance that came out small by luck: 95% intervals cover .91 to
.93 (simulated). There the interval of Graybill & Wang (1980) is used, which errs to the wide side (.95 to .98)."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """One task: its paired differences and its weight in the mean."""

    differences: Floats
    """D[seed, item]."""
    weight: float
    clusters: NDArray[np.int64] | None = None
    """Passage number of each item; None: every item stands alone."""


@dataclass(frozen=True, slots=True)
class _ItemPart:
    """What drawing other items would change in a task's mean."""

    items: float
    """Squared standard error of the mean over items of the seed-averaged differences."""
    residual: float
    """The part of it that is item x seed noise, which the seeds' variance holds already."""
    clusters: int


@dataclass(frozen=True, slots=True)
class Crossed:
    """The weighted mean over tasks with what its uncertainty is made of."""

    effect: Effect
    by_seed: tuple[float, ...]
    seed_variance: float
    """Squared standard error from seeds (with item x seed noise)."""
    item_variance: float
    """Squared standard error from items alone."""
    noise_variance: float
    """The part of `seed_variance` that is item x seed noise: more items shrink it, other seeds do not."""


def crossed_mean(strata: Sequence[Stratum], alpha: float = 0.025) -> Crossed:
    """Mean of paired differences over tasks, with seeds and items as random effects.

    Args:
        strata: at least one; all with the same seeds in the same order.
        alpha: one-sided error that bounds will be asked for; with few seeds the degrees of freedom are those of it.
    """
    seeds = strata[0].differences.shape[0]
    by_seed = sum((stratum.weight * stratum.differences.mean(1) for stratum in strata), np.zeros(seeds))
    over_seeds = mean_of([float(value) for value in by_seed])
    if over_seeds.se is None:
        return Crossed(over_seeds, tuple(map(float, by_seed)), math.nan, math.nan, math.nan)
    parts = [(stratum.weight, _item_part(stratum)) for stratum in strata]
    item_variance = max(0.0, sum(weight**2 * (part.items - part.residual) for weight, part in parts))
    seed_variance = over_seeds.se**2
    noise_variance = min(seed_variance, sum(weight**2 * part.residual for weight, part in parts))
    variance = seed_variance + item_variance
    if seeds < FEW_SEEDS:
        df = _graybill_wang_df(seed_variance, item_variance, seeds - 1, alpha)
    else:
        df = _satterthwaite_df(seed_variance, item_variance, seeds - 1, parts)
    effect = Effect(
        low=over_seeds.low, high=over_seeds.high, se=math.sqrt(variance), n=seeds, sd=over_seeds.sd, df=df,
        how="items and seeds crossed",
    )  # fmt: skip
    return Crossed(effect, tuple(map(float, by_seed)), seed_variance, item_variance, noise_variance)


def _satterthwaite_df(
    seed_variance: float, item_variance: float, seed_df: int, parts: Sequence[tuple[float, _ItemPart]]
) -> float:
    """(sum of mean squares)^2 over the sum of each one's square / df."""
    weighted = seed_variance**2 / seed_df
    for weight, part in parts if item_variance > 0 else ():
        if part.clusters > 1:
            df = part.clusters - 1
            weighted += weight**4 * (part.items**2 / df + part.residual**2 / (df * seed_df))
    return (seed_variance + item_variance) ** 2 / weighted if weighted > 0 else float(seed_df)


def _graybill_wang_df(seed_variance: float, item_variance: float, seed_df: int, alpha: float) -> float:
    """Degrees of freedom whose t quantile gives the half width sqrt(t^2 V_seed + z^2 V_item) at `alpha`."""
    variance = seed_variance + item_variance
    if variance == 0:
        return float(seed_df)
    widths = quantile(alpha, seed_df) ** 2 * seed_variance + quantile(alpha, math.inf) ** 2 * item_variance
    wanted = math.sqrt(widths / variance)
    low, high = float(seed_df), 1e9
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if quantile(alpha, middle) > wanted else (low, middle)
    return math.sqrt(low * high)


def items_only(strata: Sequence[Stratum]) -> Effect:
    """The same mean for these very models: seeds fixed, items random."""
    mean = sum(stratum.weight * float(stratum.differences.mean()) for stratum in strata)
    parts = [(stratum.weight, _item_part(stratum)) for stratum in strata]
    variance = sum(weight**2 * part.items for weight, part in parts)
    weighted = sum(weight**4 * part.items**2 / (part.clusters - 1) for weight, part in parts if part.clusters > 1)
    if any(part.clusters < 2 for _, part in parts):
        return Effect(low=mean, high=mean, se=None, df=0, n=0, how="a single item")
    df = variance**2 / weighted if weighted > 0 else math.inf
    return Effect(low=mean, high=mean, se=math.sqrt(variance), df=df, n=parts[0][1].clusters, how="items")


def _item_part(stratum: Stratum) -> _ItemPart:
    differences = stratum.differences
    seeds, items = differences.shape
    by_item = differences.mean(0)
    centred = by_item - by_item.mean()
    residual = differences - by_item - differences.mean(1, keepdims=True) + differences.mean()
    if stratum.clusters is None:
        clusters, sums, residual_sums = items, centred, residual
    else:
        clusters = int(stratum.clusters.max()) + 1
        sums = np.bincount(stratum.clusters, centred, clusters)
        residual_sums = np.stack([np.bincount(stratum.clusters, row, clusters) for row in residual])
    if clusters < 2:
        return _ItemPart(0.0, 0.0, clusters)
    correction = clusters / (clusters - 1) / items**2
    noise = float((residual_sums**2).sum()) / (seeds * (seeds - 1)) if seeds > 1 else 0.0
    return _ItemPart(float((sums**2).sum()) * correction, noise * correction, clusters)
