"""How long a run will take yet: small cases do not promise hours, and nothing is promised before the first."""

from __future__ import annotations

import pytest

from bench.case import Case
from bench.pace import Pace
from tests.bench.fakes import case, plan

START_S, FACTOR = 8.0, 0.8


def training(number: int, planned_s: float) -> Case:
    return case(number, kind="train", purpose="reference", estimate={"time_s": planned_s})


def test_what_a_case_needs_to_start_is_no_factor() -> None:
    """Trials of seconds come first, trainings of minutes after them: the start is theirs alike, not their multiple."""
    planned = [2.0, 2.0, 4.0, 4.0, 300.0, 600.0]
    cases = [training(number, time_s) for number, time_s in enumerate(planned, 1)]
    pace = Pace(plan(*cases), {})
    for one in cases[:4]:
        pace.ended(one, START_S + FACTOR * (one.estimate.time_s or 0))
    assert pace.left_s() == pytest.approx(2 * START_S + FACTOR * 900)
    assert pace.left_s(0.5) == pytest.approx(1.5 * START_S + FACTOR * 750)
    assert (pace.done, pace.total) == (4, 6)


def test_each_kind_has_its_own_pace_and_one_not_seen_that_of_all() -> None:
    timing = case(1, kind="timing", purpose="timing", estimate={"time_s": 10.0})
    first, second, evaluation = training(2, 20.0), training(3, 20.0), case(4, kind="evaluate", purpose="evaluate")
    pace = Pace(plan(timing, first, second, evaluation), {})
    assert pace.left_s() is None
    pace.ended(timing, 100.0)
    assert pace.left_s() == pytest.approx(10 * (20 + 20 + 10)), "a case without an estimate weighs ten seconds"
    pace.ended(first, 20.0)
    assert pace.left_s() == pytest.approx(20.0 + 10 * 120 / 30), "no line falls: of all kinds their sums decide"


@pytest.mark.parametrize("took_s", [(5.0, 30.0), (10.0, 10.0), (1.0, 90.0)])
def test_no_start_is_below_nothing(took_s: tuple[float, float]) -> None:
    """Two cases whose line would begin below zero or be flat: their sums decide."""
    cases = [training(1, 10.0), training(2, 20.0), training(3, 40.0)]
    pace = Pace(plan(*cases), {})
    for one, seconds in zip(cases, took_s, strict=False):
        pace.ended(one, seconds)
    assert pace.left_s() == pytest.approx(40.0 * sum(took_s) / 30.0)


def test_at_the_end_nothing_is_left() -> None:
    pace = Pace(plan(case(1)), {})
    pace.ended(case(1), 3.0)
    assert pace.left_s() == 0
