"""Sample sizes that the method quotes, and limiting cases."""

import math

import pytest

from bench.stats.effect import Effect
from bench.stats.power import detectable, items_for_margin, items_needed, power, room, seeds_needed


@pytest.mark.parametrize(("discordant", "items"), [(0.1, 6183), (0.2, 12366), (0.3, 18548)])
def test_items_for_one_point_at_80_percent_power(discordant, items):
    assert items_for_margin(0.01, discordant) == items


def test_seeds_needed_grow_with_noise_and_stop_at_two():
    assert seeds_needed(1.0, 0.01, 0.025) == 2
    assert seeds_needed(0.05, 0.05, 0.025) == 7
    assert seeds_needed(0.05, 0.05, 0.025, power=0.8) > 7
    assert seeds_needed(0.0001, 1.0, 0.025) is None
    assert seeds_needed(0.0, 1.0, 0.025) is None


def test_the_number_of_seeds_is_enough_and_one_less_is_not():
    from bench.stats.effect import quantile

    n = seeds_needed(0.04, 0.06, 0.025)
    assert quantile(0.025, n - 1) * 0.06 / math.sqrt(n) <= 0.04 < quantile(0.025, n - 2) * 0.06 / math.sqrt(n - 1)


def test_items_cannot_mend_what_seeds_break():
    assert items_needed(0.01, 1e-5, 1e-3, 0.025) is None
    assert items_needed(0.02, 1e-4, 0.0, 0.025) == pytest.approx(1e-4 / (0.02 / 1.959964) ** 2, rel=1e-4)


def test_detectable_distance_is_two_quantiles_of_the_standard_error():
    assert detectable(Effect(low=0, high=0, se=0.01, df=math.inf, n=9), 0.025) == pytest.approx(0.028016, abs=1e-5)
    assert detectable(Effect(low=0, high=0, se=None, df=0, n=1), 0.025) is None


@pytest.mark.parametrize(
    ("d", "n", "alpha", "expected"),
    [
        (0.5, 33.36713, 0.025, 0.8),  # pwr.t.test(d=0.5, power=0.8, type="paired")
        (0.8, 14.30278, 0.025, 0.8),  # pwr.t.test(d=0.8, power=0.8, type="paired")
    ],
)
def test_power_of_a_t_test_is_the_published_one(d, n, alpha, expected):
    assert power(d, 1 / math.sqrt(n), n - 1, alpha) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("d", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_for_power_are_cohens(d, n):
    """Cohen 1988, table 2.4.1, for a paired test at two-sided .05 and power .80 (as the R package pwr computes it)."""
    assert seeds_needed(d, 1.0, 0.025, power=0.8) == n


def test_the_room_has_the_power_that_it_says():
    for df in (1, 2, 6, 40):
        assert power(room(0.1, df, 0.025), 0.1, df, 0.025) == pytest.approx(0.8, abs=1e-6)


def test_arms_that_lend_noise_need_fewer_seeds():
    alone, together = (seeds_needed(0.2, 0.1, 0.025, power=0.8, arms=arms) for arms in (1, 4))
    assert together < alone


def test_both_tails_make_the_published_power_of_a_two_sided_test():
    """pwr.t.test(d=0.2, n=60, sig.level=0.10, type="one.sample") of the R package pwr: 0.4555818."""
    d, se = 0.2, 1 / math.sqrt(60)
    assert power(d, se, 59, 0.05) + power(-d, se, 59, 0.05) == pytest.approx(0.4555818, abs=1e-6)
