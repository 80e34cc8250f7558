"""Splits of an A/A run: nothing is used twice, and the rate is right where the truth is known."""

from __future__ import annotations

from itertools import islice

import pytest

from benchmarks import aa
from tests.bench.synthetic import Planted, study_of, synthesize


def study(saving=0.0, **planted):
    """Three arms and a reference with a curve."""
    arms = [Planted(name, saving=saving) for name in ("one", "two", "three")]
    return study_of(synthesize(arms=arms, items=0, layout="economical", seeds=6, **planted))


def test_no_run_serves_two_comparisons_of_a_split():
    for split in islice(aa.splits(["r", "s"], ["a", "b", "c"], range(7), 3), 20):
        used = [(name, seed) for one in split for name in (one.arm, one.reference) for seed in one.seeds]
        assert len(used) == len(set(used))
        assert len(split) == 4  # two references in two groups of three seeds


def test_splits_differ_and_are_the_same_every_time():
    first, again = (list(islice(aa.splits(["r"], ["a", "b"], range(6), 3), 5)) for _ in range(2))
    assert first == again
    assert len({tuple(split) for split in map(tuple, first)}) > 1


def test_alarms_are_as_rare_as_alpha_where_nothing_differs():
    alarms = total = 0
    for draw in range(12):
        found = aa.measure(study(noise=0.05, draw=draw), 3, 3)
        alarms += found["rate"] * 3 * found["comparisons_a_split"]
        total += 3 * found["comparisons_a_split"]
        assert found["covers_zero"] == pytest.approx(1 - found["rate"])
    assert alarms / total < 0.2


def test_a_real_difference_rings():
    judged = aa.judge(study(saving=0.3, noise=0.005), aa.Comparison("two", "dense", (0, 1, 2)))
    assert judged["outcome"] == "SAVES"


@pytest.mark.parametrize(("alarms", "n", "low", "high"), [(0, 10, 0.0, 0.3085), (1, 20, 0.00127, 0.24873)])
def test_clopper_and_pearsons_interval(alarms, n, low, high):
    assert aa.interval(alarms, n) == pytest.approx((low, high), abs=1e-4)
