"""Contrasts in a table of cells (combinations of techniques) by blocks (seeds).

y[cell, block] = cell + block + residual. A contrast is a weighted sum of the cells' means whose weights add to zero, so
that blocks drop out; its variance is MS x sum(w^2) / blocks with (cells - 1)(blocks - 1) degrees of freedom (Scheffe
1959, section 4.2). Main effects and interactions of a two-level factorial are contrasts with equal weights of both
signs (Montgomery, 8th ed., sections 6.2 to 6.4); so is the difference of two cells, and the question whether savings
multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.additive import is_noisier
from bench.stats.effect import Effect
from bench.stats.fractions import Effect as Factors
from bench.stats.fractions import sign


@dataclass(frozen=True, slots=True)
class Layout:
    """A complete table: every cell has a value in every block."""

    cells: tuple[str, ...]
    y: NDArray[np.float64]
    """[cell, block]."""

    @classmethod
    def of(cls, values: Mapping[str, Mapping[int, float]]) -> Layout:
        """The table over the blocks that every cell has.

        Args:
            values: cell -> block -> value.
        """
        blocks = sorted(set.intersection(*(set(row) for row in values.values()))) if values else []
        rows = [[row[block] for block in blocks] for row in values.values()]
        return cls(tuple(values), np.array(rows, dtype=np.float64).reshape(len(values), len(blocks)))

    @property
    def blocks(self) -> int:
        """Blocks in the table."""
        return self.y.shape[1]

    @property
    def df(self) -> int:
        """Degrees of freedom of the residual; none in a table without cells or blocks."""
        return max(0, len(self.cells) - 1) * max(0, self.blocks - 1)

    @property
    def residual_squares(self) -> float:
        """Residual sum of squares of cell + block."""
        rest = self.y - self.y.mean(0) - self.y.mean(1, keepdims=True) + self.y.mean()
        return float((rest**2).sum())

    def contrast(self, weights: Mapping[str, float]) -> Effect:
        """A weighted sum of cell means.

        Contrasts in which every cell has the same weight, up to its sign, take the pooled residual: unequal noise of
        the cells then averages to the same variance. Others take it unless their own spread over blocks stands out,
        as arms do in `bench.stats.additive`.

        Args:
            weights: cell -> weight; cells left out have none. They add to zero.
        """
        w = np.array([weights.get(cell, 0.0) for cell in self.cells])
        assert set(weights) <= set(self.cells)
        assert abs(w.sum()) < 1e-9
        size = float((w**2).sum())
        by_block = w @ self.y
        value = math.fsum(by_block) / self.blocks
        own_df, own = self.blocks - 1, float(((by_block - value) ** 2).sum())
        pooled_squares = self.residual_squares
        se, df, how = None, 0.0, "one seed"
        if self.df > 0:
            se, df = math.sqrt(pooled_squares / self.df * size / self.blocks), float(self.df)
            how = f"cells x seeds, {len(self.cells)} cells"
            is_even = len({abs(weight) for weight in w}) == 1
            if not is_even and is_noisier(own / size, own_df, pooled_squares, self.df):
                se, df, how = math.sqrt(own / own_df / self.blocks), float(own_df), "paired t"
        sd = math.sqrt(own / own_df) if own_df else None
        return Effect(low=value, high=value, se=se, df=df, n=self.blocks, sd=sd, how=how,
                      least=float(by_block.min()), greatest=float(by_block.max()))  # fmt: skip

    def effect(self, factors: Factors, runs: Mapping[str, Factors]) -> Effect:
        """A main effect or an interaction: mean where its column is +1 less mean where it is -1.

        Args:
            factors: the factors of the effect.
            runs: the cells that are runs of the design, each with the factors that are on; half of them at each sign.
        """
        half = len(runs) / 2
        return self.contrast({cell: sign(run, factors) / half for cell, run in runs.items()})

    def squares(self, factors: Factors, runs: Mapping[str, Factors]) -> float:
        """Sum of squares of a factorial effect: (runs x blocks / 4) x effect^2 (Montgomery, equation 6.9)."""
        value = self.effect(factors, runs).value
        assert value is not None
        return len(runs) * self.blocks / 4 * value**2


def product_weights(whole: str, singles: Sequence[str], baseline: str) -> dict[str, float]:
    """Weights of ln(measured whole / product of the singles), all relative to the baseline.

    (whole - baseline) - sum(single - baseline): zero where savings multiply.
    """
    weights = {whole: 1.0, baseline: float(len(singles) - 1)}
    return weights | dict.fromkeys(singles, -1.0)
