"""Arms and seeds as an additive model: y[arm, seed] = arm + seed + residual.

Arms of one noise class share a reference and a seed's data order, so their paired differences are not independent:
pooling those would double count the reference. The residual of the two-way layout is what all of them share. The
contrast of an arm with its reference over n seeds then has variance 2 MS / n with (arms - 1)(seeds - 1) degrees of
freedom (Scheffe 1959, section 4.2), and a class of one arm is the paired t test exactly.

Pooling is only right while arms are equally noisy. An arm (or a reference) that is visibly noisier than the class takes
its own paired t instead (`noisier_p`), because a pooled interval for it may cover 80% instead of 95%. Two seeds cannot
show which is noisier, so with two nothing is pooled: one degree of freedom, a wide interval that is true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from bench.stats.effect import Effect

NOISIER_P = {1: 1.0, 2: 0.5, 3: 0.5}
"""Seeds less one -> the p-value of an F test below which an arm's own paired variance is taken to exceed the rest of
its class, so that it is not pooled (1: never pooled). Loose on purpose: simulated (`python -m benchmarks.pooling`; one
of 2 to 6 arms, or the reference, up to 10 times as noisy or as quiet), the worst coverage of 95% intervals is .95 at 2
seeds, .93 at 3 and .94 at 4; with .3 throughout it was .87, .91 and .93."""
NOISIER_P_OF_MANY = 0.3
"""The same from 5 seeds on: worst coverage .93."""
LOOKED_AT = {2: 0.88, 3: 0.88}
"""Seeds less one -> what the standard error of a pooled arm is multiplied by. Only an arm that looks no noisier than
its class is pooled, so its ratio of mean to standard error is no longer Student's: among equals, intervals without this
would cover .97 to .98, with it they cover .96 (same simulation; from 5 seeds on the F test alone does it)."""

NO_REPLICATE = "no replicate"
"""How a standard error was found where there is none: fewer than two seeds have a size."""


def noisier_p(own_df: int) -> float:
    """The p-value below which an arm with so many degrees of freedom of its own is not pooled."""
    return NOISIER_P.get(own_df, NOISIER_P_OF_MANY)


def pooled_df(arms: int, seeds: int) -> int:
    """Degrees of freedom that a class of equally noisy arms has together; with two seeds each has its own alone."""
    return seeds - 1 if noisier_p(seeds - 1) >= 1 else arms * (seeds - 1)


@dataclass(frozen=True, slots=True)
class Value:
    """One seed's value, perhaps known only to lie between two ends."""

    low: float
    high: float
    centre: float | None
    """Best guess for estimating noise: the value itself, or what extrapolation gives; None where nothing does."""

    @property
    def exact(self) -> bool:
        """Whether it is known."""
        return self.low == self.high


def exactly(value: float) -> Value:
    """A known value."""
    return Value(value, value, value)


Differences = Mapping[str, Mapping[int, Value]]
"""arm -> seed -> its value minus its reference's."""


def effects(differences: Differences) -> dict[str, Effect]:
    """The mean of each arm of a noise class against their common reference.

    Args:
        differences: paired by seed; arms may lack seeds. Arms without any seed are left out.
    """
    present = {arm: values for arm, values in differences.items() if values}
    centres = {
        arm: {seed: value.centre for seed, value in values.items() if value.centre is not None}
        for arm, values in present.items()
    }
    pooled = _residual(centres)
    return {arm: _effect(values, centres[arm], pooled, len(present)) for arm, values in present.items()}


@dataclass(frozen=True, slots=True)
class _Residual:
    """Residual of the two-way layout."""

    squares: float
    df: int


def _effect(values: Mapping[int, Value], centres: Mapping[int, float], pooled: _Residual, arms: int) -> Effect:
    n = len(values)
    low = math.fsum(value.low for value in values.values()) / n
    high = math.fsum(value.high for value in values.values()) / n
    own, own_df = _own(list(centres.values()))
    sd = math.sqrt(own / own_df) if own_df > 0 else None
    se, df, how, noise, lenders = None, 0, NO_REPLICATE, sd, 1
    if arms > 1 and pooled.df > own_df and not is_noisier(own / 2, own_df, pooled.squares, pooled.df):
        share = LOOKED_AT.get(own_df, 1.0)
        noise, lenders = math.sqrt(2 * pooled.squares / pooled.df), arms
        se, df = share * noise / math.sqrt(n), pooled.df
        how = f"additive model over {arms} arms"
    elif own_df > 0:
        se, df, how = math.sqrt(own / own_df / n), own_df, "paired t"
    return Effect(
        low=low, high=high, se=se, df=df, n=n, sd=sd, noise=noise, arms=lenders, how=how,
        least=min(value.low for value in values.values()),
        greatest=max(value.high for value in values.values()),
    )  # fmt: skip


def _own(values: Sequence[float]) -> tuple[float, int]:
    """Sum of squares around the mean, and its degrees of freedom."""
    if not values:
        return 0.0, 0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values), len(values) - 1


def is_noisier(own: float, own_df: int, squares: float, df: int) -> bool:
    """Whether a contrast's share of the residual stands out from the rest's (F test at `noisier_p`).

    Args:
        own: its sum of squares over seeds, over the sum of its squared weights (2 for an arm against its reference).
        own_df: degrees of freedom of `own`.
        squares, df: of the whole residual, `own` included.
    """
    rest, rest_df = max(squares - own, 0.0), df - own_df
    if own_df <= 0 or rest_df <= 0 or own == 0:
        return False
    if rest == 0:
        return True
    return float(fdtrc(own_df, rest_df, (own / own_df) / (rest / rest_df))) < noisier_p(own_df)


def _residual(centres: Mapping[str, Mapping[int, float]]) -> _Residual:
    """Residual sum of squares of arm + seed over the arms and their reference (whose differences are zero)."""
    rows = [dict(values) for values in centres.values() if values]
    seeds = sorted({seed for row in rows for seed in row})
    if len(seeds) < 2:
        return _Residual(0.0, 0)
    rows.insert(0, dict.fromkeys(seeds, 0.0))
    if all(len(row) == len(seeds) for row in rows):
        table = np.array([[row[seed] for seed in seeds] for row in rows])
        residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        return _Residual(float((residual**2).sum()), (len(rows) - 1) * (len(seeds) - 1))
    return _unbalanced(rows, seeds)


def _unbalanced(rows: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> _Residual:
    cells = [
        (arm, column, row[seed]) for arm, row in enumerate(rows) for column, seed in enumerate(seeds) if seed in row
    ]
    design: NDArray[np.float64] = np.zeros((len(cells), len(rows) + len(seeds) - 1))
    for line, (arm, column, _) in enumerate(cells):
        design[line, arm] = 1
        if column:
            design[line, len(rows) + column - 1] = 1
    y = np.array([value for _, _, value in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, y)
    return _Residual(float(((y - design @ solution) ** 2).sum()), len(cells) - int(rank))


def sds(values: Iterable[float]) -> float | None:
    """Sample standard deviation; None below two values."""
    squares, df = _own(list(values))
    return math.sqrt(squares / df) if df > 0 else None
