"""Loss laws: published parameters come back from data drawn from them; limiting cases; seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats.scaling import (
    Chinchilla,
    Power,
    _Objective,
    fit_chinchilla,
    fit_power,
    frontier,
    intervals,
    power_interval,
    resampled,
)
from benchmarks.scaling import BESIROGLU, drawn


def test_besiroglus_parameters_come_back_exactly_without_noise():
    n, d, loss = drawn(noise=0.0, seed=0)
    law = fit_chinchilla(n, d, loss, descents=2)
    assert law.E == pytest.approx(BESIROGLU.E, abs=1e-3)  # noqa: SIM300  (a letter of the paper is no constant)
    assert law.alpha == pytest.approx(BESIROGLU.alpha, abs=1e-3)
    assert law.beta == pytest.approx(BESIROGLU.beta, abs=1e-3)
    assert law.A == pytest.approx(BESIROGLU.A, rel=0.02)  # noqa: SIM300  (a letter of the paper is no constant)
    assert law.B == pytest.approx(BESIROGLU.B, rel=0.02)  # noqa: SIM300  (a letter of the paper is no constant)


def test_besiroglus_parameters_come_back_within_their_standard_errors():
    """Table 1 of 2404.10102: standard errors A 124.58, B 1293.23, E 0.03, alpha 0.02, beta 0.02."""
    n, d, loss = drawn(seed=1)
    law = fit_chinchilla(n, d, loss, descents=2)
    assert law.E == pytest.approx(1.8172, abs=0.09)  # noqa: SIM300  (a letter of the paper is no constant)
    assert law.alpha == pytest.approx(0.3478, abs=0.06)
    assert law.beta == pytest.approx(0.3658, abs=0.06)


def test_the_gradient_is_the_slope():
    n, d, loss = drawn(seed=2)
    objective = _Objective(n, d, loss)
    point = objective.centred([6.0, 7.5, 0.6, 0.35, 0.36])
    value, slope = objective(point)
    assert objective.values(point[None])[0] == pytest.approx(value)
    for k in range(5):
        step = np.zeros(5)
        step[k] = 1e-6
        assert (objective(point + step)[0] - objective(point - step)[0]) / 2e-6 == pytest.approx(slope[k], rel=1e-3)


def test_the_compute_optimum_is_where_no_other_split_is_better():
    n, d = BESIROGLU.optimum(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    for factor in (0.8, 1.25):
        assert BESIROGLU.loss(n * factor, d / factor) > BESIROGLU.loss(n, d)


def test_at_chinchillas_budget_twenty_tokens_a_parameter_come_out():
    """Besiroglu et al., figure 5: about 20 tokens a parameter at Chinchilla's compute of 5.76e23."""
    n, d = BESIROGLU.optimum(5.76e23)
    assert 15 < d / n < 30


def test_other_seeds_resample_otherwise_and_the_same_seed_the_same():
    n, d, loss = drawn(seed=3)
    law = Chinchilla(482.0, 2085.4, 1.8172, 0.3478, 0.3658)
    one, same, other = (resampled(n, d, loss, law, seed=seed, resamples=3) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    low, high = intervals(one)["alpha"]
    assert low < high


def test_a_law_without_a_floor_can_be_resampled():
    """Small models far from any floor: the fit drives E to zero, whose logarithm is no start."""
    n, d, _ = drawn(seed=3)
    law = Chinchilla(482.0, 2085.4, 0.0, 0.3478, 0.3658)
    refits = resampled(n, d, law.loss(n, d), law, seed=0, resamples=3)
    assert all(math.isfinite(one.alpha) and one.E < 0.01 for one in refits)


def test_a_power_law_comes_back_and_an_outlier_does_not_move_it():
    """Kaplan et al., table 1: alpha_N 0.076, N_c 8.8e13."""
    x = np.geomspace(1e6, 1e9, 12)
    loss = np.asarray(Power(math.log(8.8e13), 0.076).loss(x)).copy()
    law = fit_power(x, loss)
    assert law.exponent == pytest.approx(0.076, rel=1e-4)
    assert law.log_scale == pytest.approx(math.log(8.8e13), rel=1e-4)
    loss[5] *= 1.2
    assert fit_power(x, loss).exponent == pytest.approx(0.076, rel=0.02)


def test_the_exponents_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    x = np.repeat(np.geomspace(1e6, 1e8, 6), 3)
    inside = 0
    for seed in range(60):
        loss = np.asarray(Power(math.log(8.8e13), 0.076).loss(x)) * np.exp(0.005 * random.standard_normal(len(x)))
        low, high = power_interval(x, loss, seed=seed, resamples=40)
        inside += low <= 0.076 <= high
    assert inside >= 45  # a percentile bootstrap of 18 points is a little narrow: .90, less four standard errors


def test_the_frontier_is_what_no_other_beats():
    flops, loss = np.array([1.0, 1.0, 2.0, 3.0]), np.array([4.0, 3.5, 3.6, 3.0])
    assert frontier(flops, loss).tolist() == [False, True, False, True]
