"""A saving against size: published regression, coverage of the extrapolation, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats.trend import AtScale, trend

SIZES = (1e12, 1e13, 1e14, 1e15)


def line(values, sizes=SIZES, se=0.01, df=4.0):
    return trend([AtScale(flops, value, se, df) for flops, value in zip(sizes, values, strict=True)])


def test_an_exact_line_is_read_exactly():
    found = line([0.3, 0.25, 0.2, 0.15])
    assert found.slope(0.025).value == pytest.approx(-0.05)
    there = found.at(1e17, 0.025)
    assert there.value == pytest.approx(0.05)
    assert there.low < 0.05 < there.high


def test_the_prediction_interval_is_the_textbooks_where_all_scales_weigh_the_same():
    """Montgomery, Peck & Vining, equation 2.45: t s sqrt(1 + 1/n + (x0 - mean)^2 / Sxx)."""
    from bench.stats.effect import quantile

    x, y = np.log10(SIZES), np.array([0.30, 0.10, 0.28, 0.05])
    slope, start = np.polyfit(x, y, 1)
    s = math.sqrt(((y - start - slope * x) ** 2).sum() / 2)
    half = quantile(0.025, 2) * s * math.sqrt(1 + 1 / 4 + (17 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    there = line(list(y), se=0.001).at(1e17, 0.025)
    assert there.high - there.value == pytest.approx(half)


def test_a_noisy_scale_weighs_less():
    scales = [AtScale(1e12, 0.3, 0.001, 4), AtScale(1e13, 0.3, 0.001, 4), AtScale(1e14, 0.0, 1.0, 4)]
    assert trend(scales).at(1e14, 0.025).value == pytest.approx(0.3, abs=1e-3)


def test_fewer_than_three_sizes_make_no_line():
    assert line([0.1, 0.2], SIZES[:2]) is None
    assert line([0.1, 0.2, 0.3], (1e12, 1e12, 1e13)) is None


@pytest.mark.parametrize("scatter", [0.0, 0.05])
@pytest.mark.parametrize("scales", [3, 4])
def test_the_extrapolation_covers(scatter, scales):
    """1,000 studies: the interval at a size two decades away holds the truth there at least 94% of the time."""
    random = np.random.default_rng(scales)
    sizes, seeds, target = np.array(SIZES[:scales]), 5, 1e17
    inside, studies = 0, 1000
    for _ in range(studies):
        truth = 0.3 - 0.03 * np.log10(sizes / 1e12) + scatter * random.standard_normal(scales)
        draws = truth[:, None] + 0.05 * random.standard_normal((scales, seeds))
        points = [
            AtScale(float(flops), float(row.mean()), float(row.std(ddof=1) / math.sqrt(seeds)), seeds - 1.0)
            for flops, row in zip(sizes, draws, strict=True)
        ]
        there = trend(points).at(target, 0.025)
        inside += there.low <= 0.3 - 0.03 * 5 + scatter * random.standard_normal() <= there.high
    assert inside >= 0.93 * studies
