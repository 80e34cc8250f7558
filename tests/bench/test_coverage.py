"""Intervals cover and false alarms stay rare, through the whole path from records to verdict.

A few hundred studies a scenario; `benchmarks/validity.py` runs ten thousand.
"""

from __future__ import annotations

import pytest

from benchmarks.validity import SCENARIOS, Tally, simulate

STUDIES = 150
NAMES = ["economical, 3 seeds", "full, 5 seeds", "true saving at the claim", "nothing saved"]


@pytest.mark.parametrize("name", NAMES)
def test_coverage_and_false_alarms(name):
    scenario = next(one for one in SCENARIOS if one.name == name)
    tally: Tally = simulate(scenario, range(10_000, 10_000 + STUDIES))
    assert tally.studies == STUDIES
    for arm in tally.covered:
        # Four standard errors of a binomial at .95 with 150 draws: .07.
        assert tally.coverage(arm) >= 0.88, arm
    assert tally.false_supported <= 0.025 * STUDIES + 4 * (0.025 * STUDIES) ** 0.5
