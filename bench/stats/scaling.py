"""Loss laws: Kaplan's power laws in one variable, and Chinchilla's L = E + A / N^a + B / D^b.

Both are fitted as Hoffmann et al. (arXiv 2203.15556, appendix D.3) fit theirs: the residual is ln of fitted over
measured loss, its Huber loss (delta 1e-3) is *summed* over points, and L-BFGS starts from a grid (the best of it by the
objective). Besiroglu et al. (arXiv 2404.10102) show what goes wrong otherwise: an averaged loss ends the search early,
and the published parameters do not fit their own data. Intervals are percentiles of refits to resampled points.

Letters: N parameters, D training tokens, C training FLOPs, L loss in nats a token.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

HUBER_DELTA = 1e-3
"""Residual in ln L beyond which the loss grows linearly (Hoffmann et al., appendix D.3)."""
STARTS = {
    "ln_a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), "ln_b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "ln_e": (-1.0, -0.5, 0.0, 0.5, 1.0), "alpha": (0.0, 0.5, 1.0, 1.5, 2.0), "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}  # fmt: skip
"""Grid of starts (Hoffmann et al., appendix D.3): 4,500 of them."""
DESCENTS = 24
"""Starts, best first by the objective, that L-BFGS descends from."""
RESAMPLES = 200
"""Refits an interval is read from."""
FLOPS_PER_PARAM_TOKEN = 6
"""C = 6 N D (Kaplan et al., arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True, slots=True)
class Chinchilla:
    """L = E + A / N^alpha + B / D^beta."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def loss(self, n: Array | float, d: Array | float) -> Array | float:
        """Fitted loss."""
        return self.E + self.A / np.asarray(n) ** self.alpha + self.B / np.asarray(d) ** self.beta

    @property
    def falls(self) -> bool:
        """Whether loss falls with size and with length, as a law must: otherwise the points do not determine it."""
        return self.alpha > 0 and self.beta > 0

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D with the least loss at C = 6 N D (Hoffmann et al., equation 4), of a law that falls."""
        total = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        share = flops / FLOPS_PER_PARAM_TOKEN
        return g * share ** (self.beta / total), share ** (self.alpha / total) / g


@dataclass(frozen=True, slots=True)
class Power:
    """L = (scale / x)^exponent, a straight line in ln L against ln x (Kaplan et al., equations 1.1 to 1.3)."""

    log_scale: float
    """ln of the scale, which a nearly flat law puts beyond any number."""
    exponent: float

    def loss(self, x: Array | float) -> Array | float:
        """Fitted loss."""
        return np.exp(self.exponent * (self.log_scale - np.log(x)))


# --- Chinchilla ----------------------------------------------------------------------------------


class _Objective:
    """Summed Huber loss of ln L and its gradient, in ln N and ln D counted from their means.

    Centred, the five parameters (ln A', ln B', ln E, alpha, beta) hardly lean on each other, and L-BFGS needs tens of
    steps instead of thousands.
    """

    def __init__(self, n: Array, d: Array, loss: Array) -> None:
        self.middle = float(np.log(n).mean()), float(np.log(d).mean())
        self.x, self.z = np.log(n) - self.middle[0], np.log(d) - self.middle[1]
        self.y = np.log(loss)

    def centred(self, start: Sequence[float]) -> Array:
        """(ln A, ln B, ln E, alpha, beta) as the objective counts them."""
        a, b, e, alpha, beta = start
        return np.array([a - alpha * self.middle[0], b - beta * self.middle[1], e, alpha, beta])

    def law(self, point: Array) -> Chinchilla:
        """The law of a point."""
        a, b, e, alpha, beta = map(float, point)
        return Chinchilla(
            math.exp(a + alpha * self.middle[0]), math.exp(b + beta * self.middle[1]), math.exp(e), alpha, beta
        )

    def __call__(self, point: Array) -> tuple[float, Array]:
        """Value in units of delta^2, and gradient."""
        a, b, e, alpha, beta = point
        terms = np.stack([a - alpha * self.x, b - beta * self.z, np.full_like(self.x, e)])
        top = terms.max(0)
        parts = np.exp(terms - top)
        total = parts.sum(0)
        rest = (top + np.log(total) - self.y) / HUBER_DELTA
        far = np.abs(rest) > 1
        value = float(np.where(far, np.abs(rest) - 0.5, 0.5 * rest**2).sum())
        pull = np.clip(rest, -1, 1) * parts / total / HUBER_DELTA
        slopes = [pull[0].sum(), pull[1].sum(), pull[2].sum(), -(pull[0] * self.x).sum(), -(pull[1] * self.z).sum()]
        return value, np.array(slopes)

    def values(self, points: Array) -> Array:
        """The objective at many points at once, [points, 5]."""
        a, b, e, alpha, beta = (column[:, None] for column in points.T)
        fitted = np.logaddexp(np.logaddexp(a - alpha * self.x, b - beta * self.z), e)
        rest = np.abs(fitted - self.y) / HUBER_DELTA
        return np.where(rest > 1, rest - 0.5, 0.5 * rest**2).sum(1)


def fit_chinchilla(n: Array, d: Array, loss: Array, *, descents: int = DESCENTS) -> Chinchilla:
    """The law nearest to the points.

    Args:
        n, d, loss: of each training; at least as many points as parameters (five), N and D both varied.
        descents: starts of the grid that are descended from.
    """
    objective = _Objective(n, d, loss)
    starts = np.array([objective.centred(start) for start in itertools.product(*STARTS.values())])
    best = starts[np.argsort(objective.values(starts), kind="stable")[:descents]]
    return _descend(objective, best)


def _descend(objective: _Objective, starts: Array) -> Chinchilla:
    from scipy.optimize import minimize

    found: tuple[float, Array] | None = None
    for start in starts:
        end = minimize(objective, start, jac=True, method="L-BFGS-B",
                       options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-13, "gtol": 1e-9})  # fmt: skip
        if found is None or end.fun < found[0]:
            found = float(end.fun), end.x
    assert found is not None
    return objective.law(found[1])


def resampled(
    n: Array, d: Array, loss: Array, law: Chinchilla, *, seed: int, resamples: int = RESAMPLES
) -> list[Chinchilla]:
    """Refits to points drawn with replacement, each from the fit to all points.

    Draws that leave fewer than three sizes or lengths do not determine the law and are drawn again.
    """
    least = sys.float_info.min  # a floor E that the fit drove to zero
    start = [*(math.log(max(value, least)) for value in (law.A, law.B, law.E)), law.alpha, law.beta]
    found: list[Chinchilla] = []
    for index in itertools.islice(_draws(n, d, seed), resamples):
        objective = _Objective(n[index], d[index], loss[index])
        found.append(_descend(objective, objective.centred(start)[None]))
    return found


def _draws(n: Array, d: Array, seed: int) -> Iterator[NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    while True:
        index = random.integers(0, len(n), len(n))
        if len(np.unique(n[index])) >= 3 and len(np.unique(d[index])) >= 3:
            yield index


def intervals(laws: Sequence[Chinchilla], level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Percentile interval of each parameter."""
    tail = (1 - level) / 2
    return {
        field.name: _ends([getattr(law, field.name) for law in laws], tail) for field in fields(Chinchilla)
    }  # fmt: skip


def _ends(values: Sequence[float], tail: float) -> tuple[float, float]:
    low, high = np.quantile(np.array(values), [tail, 1 - tail])
    return float(low), float(high)


# --- Kaplan --------------------------------------------------------------------------------------


def fit_power(x: Array, loss: Array) -> Power:
    """The power law nearest to the points, by the same Huber loss (convex here: one start is enough)."""
    from scipy.optimize import minimize

    middle = float(np.log(x).mean())
    u, y = np.log(x) - middle, np.log(loss)

    def objective(point: Array) -> tuple[float, Array]:
        rest = (point[0] - point[1] * u - y) / HUBER_DELTA
        pull = np.clip(rest, -1, 1) / HUBER_DELTA
        value = float(np.where(np.abs(rest) > 1, np.abs(rest) - 0.5, 0.5 * rest**2).sum())
        return value, np.array([pull.sum(), -(pull * u).sum()])

    slope, level = np.polyfit(u, y, 1)
    end = minimize(objective, np.array([level, -slope]), jac=True, method="L-BFGS-B",
                   options={"ftol": 1e-13, "gtol": 1e-9})  # fmt: skip
    height, exponent = map(float, end.x)
    return Power(middle + height / exponent, exponent)


def power_interval(
    x: Array, loss: Array, *, seed: int, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the exponent over refits to resampled points that still hold two values of x."""
    random = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < resamples:
        index = random.integers(0, len(x), len(x))
        if len(np.unique(x[index])) > 1:
            found.append(fit_power(x[index], loss[index]).exponent)
    return _ends(found, (1 - level) / 2)


def frontier(flops: Array, loss: Array) -> Mask:
    """Which points no other beats: none has a lower loss at the same compute or less."""
    return np.array([not ((flops <= c) & (loss < value)).any() for c, value in zip(flops, loss, strict=True)], bool)
