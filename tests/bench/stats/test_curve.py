"""Reading costs off curves: exact where it can be, censored where it cannot, never past 5%."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats.curve import MAX_EXTENSION, Point, log_cost_at


def convex(cost):
    return 3.0 + 1.2 * cost**-0.3


CURVE = [Point(cost, convex(cost)) for cost in (0.6, 0.8, 1.0)]


def test_a_horizon_is_read_exactly():
    for point in CURVE[1:]:
        assert math.exp(log_cost_at(CURVE, point.loss).low) == pytest.approx(point.cost, rel=1e-9)


@pytest.mark.parametrize("cost", [1.3e12, 7.1e13, 2.152857e13, 9.99e14])
def test_the_loss_of_a_horizon_costs_what_it_did_to_the_last_bit(cost):
    """One bit less, the same for every seed, is a cost without any doubt."""
    curve = [Point(cost * x, convex(x)) for x in (0.5, 0.7, 1.0, 1.4)]
    for point in curve[1:]:
        assert log_cost_at(curve, point.loss).low == math.log(point.cost)


@pytest.mark.parametrize("cost", [0.62, 0.7, 0.79, 0.85, 0.93])
def test_between_horizons_a_convex_curve_is_read_to_a_thousandth(cost):
    """A straight piece would be 0.003 off in the middle; one line through all three, 0.03."""
    value = log_cost_at(CURVE, convex(cost))
    assert value.exact
    assert value.low == pytest.approx(math.log(cost), abs=4e-4)


@pytest.mark.parametrize("cost", [1.02, 1.049, 0.58])
def test_up_to_five_percent_beyond_the_ends_is_read(cost):
    assert log_cost_at(CURVE, convex(cost)).low == pytest.approx(math.log(cost), abs=2e-3)


def test_beyond_five_percent_is_censored_above():
    value = log_cost_at(CURVE, convex(1.2))
    assert (value.low, value.high) == (pytest.approx(math.log(1 + MAX_EXTENSION)), math.inf)
    assert value.centre > value.low


def test_reached_long_before_is_censored_below():
    value = log_cost_at(CURVE, convex(0.4))
    assert (value.low, value.high) == (-math.inf, pytest.approx(math.log(0.6 / (1 + MAX_EXTENSION))))


def test_a_loss_of_a_diverged_run_costs_nothing_on_any_curve():
    value = log_cost_at(CURVE, math.inf)
    assert (value.low, value.high) == (-math.inf, pytest.approx(math.log(0.6)))


def test_a_curve_that_diverged_at_its_end_never_reached_what_its_start_did_not():
    value = log_cost_at([CURVE[0], CURVE[1], Point(1.0, math.inf)], convex(0.9))
    assert (value.low, value.high, value.centre) == (pytest.approx(0.0), math.inf, None)


def test_what_was_reached_before_a_divergence_may_count():
    value = log_cost_at([CURVE[0], CURVE[1], Point(1.0, math.inf)], convex(0.7))
    assert value.low == pytest.approx(math.log(0.7), abs=5e-3)
    assert value.high == math.inf


def test_a_curve_that_rises_at_its_end_is_not_extended():
    value = log_cost_at([Point(0.8, 4.0), Point(1.0, 4.1)], 3.9)
    assert (value.low, value.high, value.centre) == (pytest.approx(0.0), math.inf, None)


def test_a_noisy_curve_that_passes_three_times_is_read_at_the_middle_place():
    bumpy = [Point(1, 5.0), Point(2, 4.0), Point(3, 4.6), Point(4, 3.0)]
    value = log_cost_at(bumpy, 4.3)
    assert math.log(2) < value.low < math.log(3)


def test_a_single_horizon_is_only_above_or_below():
    one = [Point(1.0, 4.0)]
    assert log_cost_at(one, 3.9).high == math.inf
    assert log_cost_at(one, 4.1).low == -math.inf


@given(st.permutations(CURVE), st.floats(0.5, 1.3))
def test_the_order_of_points_does_not_matter(points, cost):
    assert log_cost_at(points, convex(cost)) == log_cost_at(CURVE, convex(cost))


@given(st.floats(0.55, 1.1), st.floats(0.01, 100.0))
def test_another_unit_of_cost_shifts_every_reading(cost, unit):
    scaled = log_cost_at([Point(point.cost * unit, point.loss) for point in CURVE], convex(cost))
    plain = log_cost_at(CURVE, convex(cost))
    assert scaled.low == pytest.approx(plain.low + math.log(unit), abs=1e-9)


def test_two_trainings_of_nearly_the_same_cost_are_two_readings_of_one_place():
    """A claim point beside a horizon: a piece between the two would be all noise, and read as three crossings."""
    low, high = convex(0.8) - 0.01, convex(0.8) + 0.01
    value = log_cost_at([CURVE[0], Point(0.799, low), Point(0.801, high), CURVE[2]], convex(0.8))
    assert value.low == pytest.approx(math.log(0.8), abs=5e-4)
    apart = log_cost_at([CURVE[0], Point(0.78, low), Point(0.82, high), CURVE[2]], convex(0.8))
    assert apart.low != pytest.approx(math.log(0.8), abs=5e-4)


def test_a_diverged_training_beside_a_finished_one_leaves_the_place_unreached():
    value = log_cost_at([CURVE[0], Point(0.799, convex(0.8)), Point(0.8, math.inf), CURVE[2]], convex(0.9))
    assert (value.low, value.high) == (pytest.approx(math.log(0.8), abs=2e-3), pytest.approx(0.0))
