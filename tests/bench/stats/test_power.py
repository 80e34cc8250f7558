"""Sample sizes that the method quotes, and limiting cases."""

import math

import pytest

from bench.stats.effect import Effect
from bench.stats.power import detectable, items_for_margin, items_needed, seeds_needed


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
