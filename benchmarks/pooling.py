"""When arms of unequal noise may lend each other theirs: coverage of 95% intervals by the p-value that keeps one apart.

    python -m benchmarks.pooling

For 2 to 5 seeds: the worst coverage over patterns in which one arm, or the reference, is up to ten times as noisy or as
quiet as the rest, and the median half width among equals, for each candidate of `bench.stats.additive.noisier_p`; where
a pooled arm's standard error is shortened (`LOOKED_AT`), also without.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from bench.stats.additive import LOOKED_AT

STUDIES = 40_000
CANDIDATES = (0.1, 0.3, 0.5, 0.7, 1.01)


def patterns() -> Iterator[tuple[list[float], float]]:
    """(SD of each arm, SD of the reference)."""
    for arms in (2, 3, 6):
        equal = [1.0] * arms
        for ratio in (1.0, 2.0, 3.0, 5.0, 10.0):
            loud, quiet = [*equal[1:], ratio], [*equal[1:], 1 / ratio]
            yield from ((loud, 1.0), (loud, ratio), (loud, 1 / ratio), (quiet, 1.0), (equal, ratio))


Candidate = tuple[float, float]
"""(p-value that keeps an arm apart, what a pooled arm's standard error is multiplied by)."""


def candidates(seeds: int) -> list[Candidate]:
    """All that are tried with so many seeds."""
    return [(p, share) for p in CANDIDATES for share in sorted({1.0, LOOKED_AT.get(seeds - 1, 1.0)})]


def coverage(sds: Sequence[float], reference: float, seeds: int, draw: int) -> dict[Candidate, tuple[float, float]]:
    """Candidate -> (coverage of the arm that is covered worst, median half width over all)."""
    random = np.random.default_rng(draw)
    own_sd = np.array(sds)[None, :, None]
    y = own_sd * random.standard_normal((STUDIES, len(sds), seeds)) - reference * random.standard_normal(
        (STUDIES, 1, seeds)
    )
    table = np.concatenate([np.zeros((STUDIES, 1, seeds)), y], axis=1)
    residual = table - table.mean(1, keepdims=True) - table.mean(2, keepdims=True) + table.mean((1, 2), keepdims=True)
    pooled, df = (residual**2).sum((1, 2))[:, None], len(sds) * (seeds - 1)
    own, own_df = ((y - y.mean(2, keepdims=True)) ** 2).sum(2), seeds - 1
    rest, rest_df = np.maximum(pooled - own / 2, 1e-300), df - own_df
    p = stats.f.sf((own / 2 / own_df) / (rest / rest_df), own_df, rest_df)
    found: dict[Candidate, tuple[float, float]] = {}
    for below, share in candidates(seeds):
        apart = p < below
        se = np.where(apart, np.sqrt(own / own_df / seeds), share * np.sqrt(2 * pooled / df / seeds))
        half = se * np.where(apart, stats.t.ppf(0.975, own_df), stats.t.ppf(0.975, df))
        found[below, share] = (float((np.abs(y.mean(2)) <= half).mean(0).min()), float(np.median(half)))
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for seeds in (2, 3, 4, 5):
        found = [(sds, coverage(sds, reference, seeds, number), reference)
                 for number, (sds, reference) in enumerate(patterns())]  # fmt: skip
        for below, share in candidates(seeds):
            worst = min(one[below, share][0] for _, one, _ in found)
            equal = next(one[below, share] for sds, one, reference in found if sds == [1.0] * 3 and reference == 1.0)
            print(
                f"{seeds} seeds, apart below p = {below:g}, pooled standard error x {share:g}: covers {worst:.3f} at "
                f"worst, {equal[0]:.3f} among three equals with a half width of {equal[1]:.2f} SD"
            )


if __name__ == "__main__":
    main()
