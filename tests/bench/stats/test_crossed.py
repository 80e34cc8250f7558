"""Items crossed with seeds: a published table's mean squares, clusters, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.stats.crossed import Stratum, crossed_mean, items_only
from tests.bench.stats.test_additive import PENICILLIN

TABLE = np.array([PENICILLIN[name] for name in "abcd"], dtype=float)


def test_variance_and_df_from_published_mean_squares():
    """Box, Hunter & Hunter (1978), table 7.3: MS treatments 23.33 (df 3), blends 66 (df 4), residual 18.83 (df 12)."""
    rows, columns, rest = 70 / 3, 264 / 4, 226 / 12
    variance = (rows + columns - rest) / 20
    df = variance**2 / ((rows / 20) ** 2 / 3 + (columns / 20) ** 2 / 4 + (rest / 20) ** 2 / 12)
    effect = crossed_mean([Stratum(TABLE, 1.0)]).effect
    assert effect.value == pytest.approx(86.0)
    assert effect.se == pytest.approx(math.sqrt(variance))
    assert effect.df == pytest.approx(df)


def test_singleton_clusters_are_no_clusters():
    clusters = np.arange(TABLE.shape[1])
    one, two = crossed_mean([Stratum(TABLE, 1.0, clusters)]).effect, crossed_mean([Stratum(TABLE, 1.0)]).effect
    assert (one.se, one.df) == (pytest.approx(two.se), pytest.approx(two.df))


def test_items_of_one_passage_count_as_one():
    """Four copies of each item in one passage hold what one copy holds."""
    copies = np.repeat(TABLE, 4, axis=1)
    clusters = np.repeat(np.arange(5), 4)
    clustered = crossed_mean([Stratum(copies, 1.0, clusters)]).effect
    single = crossed_mean([Stratum(TABLE, 1.0)]).effect
    assert clustered.se == pytest.approx(single.se)
    assert clustered.df == pytest.approx(single.df)
    assert crossed_mean([Stratum(copies, 1.0)]).effect.se < single.se


def test_one_seed_has_no_standard_error():
    assert crossed_mean([Stratum(TABLE[:1], 1.0)]).effect.se is None


def test_items_only_is_the_standard_error_of_item_means():
    effect = items_only([Stratum(TABLE, 1.0)])
    means = TABLE.mean(0)
    assert effect.se == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert effect.df == pytest.approx(4)


def test_weights_scale_the_mean():
    effect = crossed_mean([Stratum(TABLE, 0.25), Stratum(TABLE + 4, 0.75)]).effect
    assert effect.value == pytest.approx(86.0 + 3.0)


@pytest.mark.parametrize(
    ("seed_sd", "item_sd", "noise_sd"), [(0.02, 0.3, 0.3), (0.0, 0.5, 0.1), (0.05, 0.0, 0.2)],
    ids=["mixed", "items", "seeds"],
)  # fmt: skip
def test_coverage_of_two_tasks(seed_sd, item_sd, noise_sd):
    random = np.random.default_rng(5)
    covered, n, seeds, items = 0, 600, 4, 150
    for _ in range(n):
        shared = seed_sd * random.standard_normal((seeds, 1))
        strata = [
            Stratum(
                shared + item_sd * random.standard_normal(items) + noise_sd * random.standard_normal((seeds, items)),
                0.5,
            )
            for _ in range(2)
        ]
        effect = crossed_mean(strata).effect
        covered += effect.lower(0.025) <= 0 <= effect.upper(0.025)
    assert 0.925 <= covered / n <= 0.985


def test_two_seeds_that_agree_by_luck_do_not_make_a_narrow_interval():
    random = np.random.default_rng(8)
    covered, n = 0, 600
    for _ in range(n):
        seed = 0.02 * random.standard_normal((2, 1))
        table = seed + 0.1 * random.standard_normal(150) + 0.3 * random.standard_normal((2, 150))
        effect = crossed_mean([Stratum(table, 1.0)]).effect
        covered += effect.lower(0.025) <= 0 <= effect.upper(0.025)
    assert covered / n >= 0.94


@pytest.mark.parametrize("alpha", [0.005, 0.0125, 0.025, 0.05])
@pytest.mark.parametrize("seeds", [2, 3])
def test_with_few_seeds_bounds_are_those_of_graybill_and_wang_at_the_error_asked_for(alpha, seeds):
    """sqrt(t^2 V_seed + z^2 V_item) at each side, whatever the error: a later look has a smaller one."""
    found = crossed_mean([Stratum(TABLE[:seeds], 1.0)], alpha)
    t, z = stats.t.isf(alpha, seeds - 1), stats.norm.isf(alpha)
    half = math.sqrt(t**2 * found.seed_variance + z**2 * found.item_variance)
    assert found.effect.value - found.effect.lower(alpha) == pytest.approx(half, rel=1e-6)
