"""Holm's procedure on a published example, and that its bounds agree with its decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats.effect import Effect
from bench.stats.holm import OneSided, adjust, holm


def test_adjusted_p_values_of_four():
    """p = .01, .04, .03, .005 (the worked example of Holm-Bonferroni in textbooks): two are rejected at .05."""
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_adjusted_p_values_never_exceed_one_and_keep_the_order():
    assert adjust([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert adjust([]) == []


def one_sided(effects, threshold):
    return [OneSided(effect.p_not_above(threshold), effect.lower) for effect in effects]


EFFECTS = st.lists(
    st.builds(
        lambda low, se: Effect(low=low, high=low, se=se, df=6, n=4),
        st.floats(-1, 2, allow_nan=False), st.floats(0.01, 1, allow_nan=False),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@given(EFFECTS)
def test_a_bound_reaches_the_threshold_exactly_when_rejected(effects):
    for adjusted in holm(one_sided(effects, 0.2), 0.2, 0.025):
        assert (adjusted.lower >= 0.2) == adjusted.rejected


@given(EFFECTS)
def test_adjusted_bounds_are_never_tighter_than_unadjusted_ones(effects):
    for effect, adjusted in zip(effects, holm(one_sided(effects, 0.2), 0.2, 0.025), strict=True):
        assert adjusted.lower <= max(effect.lower(0.025), 0.2) + 1e-9
        if not adjusted.rejected:
            assert adjusted.lower <= effect.lower(0.025) + 1e-9


def test_one_hypothesis_needs_no_adjustment():
    effect = Effect(low=1.0, high=1.0, se=0.1, df=4, n=5)
    (adjusted,) = holm(one_sided([effect], 0.2), 0.2, 0.025)
    assert adjusted.lower == effect.lower(0.025)
    assert adjusted.p == effect.p_not_above(0.2)
