"""An estimated mean with its interval, and the two one-sided tests on it: Student's t, and the sign test.

A value known only to lie beyond a limit (a censored seed) leaves two means: one with that seed at the end that is least
(`low`), one at the end that is greatest (`high`, perhaps infinite). Lower bounds start from `low`, upper bounds from
`high`, so that a bound holds whatever the censored value was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean over seeds with its standard error."""

    low: float
    """Mean with every censored value at its least."""
    high: float
    """Mean with every censored value at its greatest."""
    se: float | None
    """Standard error of the mean; None where nothing is left to estimate it from."""
    df: float
    """Degrees of freedom of `se` (not always whole: Satterthwaite)."""
    n: int
    """Values that went in."""
    sd: float | None = None
    """Standard deviation of the values themselves."""
    noise: float | None = None
    """Standard deviation of one value that `se` goes by: of all arms together where they lend each other theirs."""
    arms: int = 1
    """How many arms `noise` was read from."""
    least: float = -math.inf
    """No value lies below."""
    greatest: float = math.inf
    """No value lies above."""
    how: str = ""
    """Where the standard error comes from, in words."""

    @property
    def value(self) -> float | None:
        """The estimate, or None where it is only known to lie beyond a limit."""
        return self.low if self.low == self.high else None

    def lower(self, alpha: float) -> float:
        """Lower one-sided confidence bound at error `alpha`."""
        if self.se is None:
            return self.least if _signs_suffice(self.n, alpha) else -math.inf
        return self.low - quantile(alpha, self.df) * self.se if math.isfinite(self.low) else -math.inf

    def upper(self, alpha: float) -> float:
        """Upper one-sided confidence bound at error `alpha`."""
        return -self.negated().lower(alpha)

    def p_not_below(self, threshold: float) -> float:
        """One-sided p-value of 'the mean is not below the threshold': small is evidence that it is below."""
        return self.negated().p_not_above(-threshold)

    def p_not_above(self, threshold: float) -> float:
        """One-sided p-value of 'the mean is not above the threshold': small is evidence that it is above."""
        if self.se is None:
            return 0.5**self.n if self.least > threshold else 1.0
        if not math.isfinite(self.low):
            return 1.0
        if self.se == 0:
            return 0.0 if self.low > threshold else 1.0
        return float(stdtr(self.df, (threshold - self.low) / self.se))

    def negated(self) -> Effect:
        """The effect of the values with their sign turned."""
        return Effect(
            low=-self.high, high=-self.low, se=self.se, df=self.df, n=self.n, sd=self.sd, noise=self.noise,
            arms=self.arms, least=-self.greatest, greatest=-self.least, how=self.how,
        )  # fmt: skip

    def shifted(self, by: float) -> Effect:
        """The effect of the values plus a constant."""
        return Effect(
            low=self.low + by, high=self.high + by, se=self.se, df=self.df, n=self.n, sd=self.sd, noise=self.noise,
            arms=self.arms, least=self.least + by, greatest=self.greatest + by, how=self.how,
        )  # fmt: skip

    def plus(self, other: Effect) -> Effect:
        """The sum with an independent effect, over these values; degrees of freedom after Satterthwaite."""
        se, df = combine([(self.se, self.df), (other.se, other.df)])
        return Effect(
            low=self.low + other.low, high=self.high + other.high, se=se, df=df, n=self.n, sd=self.sd,
            noise=self.noise, arms=self.arms, how=self.how,
        )  # fmt: skip


def quantile(alpha: float, df: float) -> float:
    """Upper quantile of Student's t: exceeded with probability `alpha`. Infinite `df` is the normal distribution."""
    return float(stdtrit(min(df, 1e9), 1 - alpha))


def mean_of(values: Sequence[float], how: str = "paired t") -> Effect:
    """Student's t on paired differences (Student 1908). A single value has no standard error."""
    n = len(values)
    mean = math.fsum(values) / n if min(values) < max(values) else values[0]
    if n < 2:
        return Effect(low=mean, high=mean, se=None, df=0, n=n, least=min(values), greatest=max(values), how="one seed")
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Effect(
        low=mean,
        high=mean,
        se=sd / math.sqrt(n),
        df=n - 1,
        n=n,
        sd=sd,
        least=min(values),
        greatest=max(values),
        how=how,
    )


def combine(parts: Iterable[tuple[float | None, float]]) -> tuple[float | None, float]:
    """Standard error and degrees of freedom of a sum of independent estimates.

    Satterthwaite (1946), equation 17: df = (sum v_i)^2 / sum(v_i^2 / df_i), v_i the squared standard errors.
    """
    variance = weighted = 0.0
    for se, df in parts:
        if se is None:
            return None, 0.0
        variance += se**2
        weighted += se**4 / df if df > 0 else 0.0
    if weighted == 0:
        return math.sqrt(variance), math.inf
    return math.sqrt(variance), variance**2 / weighted


def _signs_suffice(n: int, alpha: float) -> bool:
    """Whether n values on one side of a point put the median there: 2^-n <= alpha (sign test)."""
    return 0.5**n <= alpha
