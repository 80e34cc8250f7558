"""Planted effects in real training: what the published run of suites/selftest.yaml must show, judged by this engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.study import load
from bench.suite import load_suite
from bench.verdict import judge_study
from lmopt import cost

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def arms():
    return judge_study(load(ROOT / "results" / "reference" / "selftest"))["arms"]


@pytest.fixture(scope="module")
def planted() -> float:
    """The share of FLOPs that the dead branch wastes, from the closed form."""
    suite = load_suite(ROOT / "suites" / "selftest.yaml")
    lean, wasteful = (cost.train_flops_per_token(suite.resolve(name, "s")).executed for name in ("lean", "wasteful"))
    return 1 - lean / wasteful


def flops(arm):
    return arm["scales"]["s"]["endpoints"]["flops"]


def condition(arm, name):
    (found,) = [one for one in arm["scales"]["s"]["conditions"] if one["name"] == name]
    return found["met"]


def test_the_planted_saving_is_found_with_its_size(arms, planted):
    assert planted == pytest.approx(0.287, abs=0.001)
    low, high = flops(arms["exact"])["bounds"]
    assert arms["exact"]["outcome"] == "SAVES"
    assert low < planted < high
    assert high - low < 0.06


def test_it_is_within_the_interval_of_an_arm_with_weights_of_its_own(arms, planted):
    low, high = flops(arms["lean"])["bounds"]
    assert low < planted < high
    assert condition(arms["lean"], "truncated_control")


def test_nothing_is_found_where_nothing_was_planted(arms):
    assert arms["placebo"]["outcome"] == "UNCLEAR"
    low, high = flops(arms["placebo"])["bounds"]
    assert low < 0 < high


def test_an_arm_that_only_trains_less_is_called_out(arms):
    assert arms["shorter"]["outcome"] != "SUPPORTED"
    assert not condition(arms["shorter"], "truncated_control")
