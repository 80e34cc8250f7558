"""Student's t, Satterthwaite and the sign test, on published worked examples and in limiting cases."""

import math

import pytest

from bench.stats.effect import Effect, combine, mean_of, quantile

SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
"""Extra hours of sleep, drug 2 minus drug 1 (Student 1908, Biometrika 6:1)."""
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_t_on_students_sleep_data():
    effect = mean_of(SLEEP)
    assert effect.value == pytest.approx(1.58)
    assert effect.df == 9
    assert effect.low / effect.se == pytest.approx(4.0621, abs=1e-4)
    assert effect.lower(0.025) == pytest.approx(0.7001142, abs=1e-6)
    assert effect.upper(0.025) == pytest.approx(2.4598858, abs=1e-6)
    assert 2 * effect.p_not_above(0.0) == pytest.approx(0.002833, abs=1e-6)


def test_satterthwaite_on_students_sleep_data_unpaired():
    one, two = mean_of(DRUG_1), mean_of(DRUG_2)
    se, df = combine([(one.se, one.df), (two.se, two.df)])
    assert df == pytest.approx(17.776, abs=1e-3)
    assert (one.low - two.low) / se == pytest.approx(-1.8608, abs=1e-4)
    difference = two.plus(one.negated())
    assert difference.lower(0.025) == pytest.approx(-0.2054832, abs=1e-6)
    assert difference.upper(0.025) == pytest.approx(3.3654832, abs=1e-6)


@pytest.mark.parametrize(("alpha", "df", "table"), [(0.025, 2, 4.303), (0.025, 9, 2.262), (0.05, 4, 2.132)])
def test_quantiles_of_t_are_those_of_the_tables(alpha, df, table):
    assert quantile(alpha, df) == pytest.approx(table, abs=5e-4)
    assert quantile(alpha, math.inf) == pytest.approx({0.025: 1.95996, 0.05: 1.64485}[alpha], abs=1e-4)


def test_one_value_gives_no_interval():
    effect = mean_of([0.3])
    assert effect.value == 0.3
    assert effect.se is None
    assert (effect.lower(0.025), effect.upper(0.025)) == (-math.inf, math.inf)
    assert effect.p_not_above(0.0) == 0.5


def test_values_that_agree_to_the_last_bit_have_no_width():
    effect = mean_of([0.2, 0.2, 0.2])
    assert effect.lower(0.025) == effect.upper(0.025) == pytest.approx(0.2)
    assert effect.p_not_above(0.1) == 0.0
    assert effect.p_not_above(0.3) == 1.0


@pytest.mark.parametrize(("n", "bound"), [(5, -math.inf), (6, 0.05)])
def test_without_noise_to_estimate_only_six_signs_make_a_bound(n, bound):
    """2^-5 = .031 is above .025, 2^-6 = .016 is below."""
    never = Effect(low=0.06, high=math.inf, se=None, df=0, n=n, least=0.05)
    assert never.lower(0.025) == bound
    assert never.upper(0.025) == math.inf
    assert never.p_not_above(0.0) == 0.5**n


def test_a_censored_mean_bounds_each_side_from_its_own_end():
    censored = Effect(low=0.1, high=math.inf, se=0.01, df=4, n=5)
    assert censored.value is None
    assert censored.lower(0.025) == pytest.approx(0.1 - 2.776 * 0.01, abs=1e-4)
    assert censored.upper(0.025) == math.inf
    assert censored.p_not_below(0.2) == 1.0
    assert censored.negated().upper(0.025) == -censored.lower(0.025)
    assert censored.shifted(1.0).low == 1.1
