"""Who pays for what, at which budget, and from how many tokens it pays."""

import math
from dataclasses import replace

import pytest

from bench import ledger
from bench.design import Hypothesis
from bench.ledger import TRAINING_ALONE, AllIn, Cost, Preparation
from bench.verdict import judge_study
from tests.bench.synthetic import STEP_S, TOKENS, TOKENS_PER_STEP, Planted, study_of, synthesize

CLEAN = Planted("clean", saving=0.1, own_preparation_s=9.0)


def described(budget=None, preparation_s=9.0, endpoint="time"):
    arms = (replace(CLEAN, own_preparation_s=preparation_s),)
    synthetic = synthesize(
        arms=arms, items=0, seeds=4, layout="economical", timing_noise=0.001, hypothesis=Hypothesis(budget=budget)
    )
    arm = judge_study(study_of(synthetic))["arms"]["clean"]
    return arm["scales"]["s"]["endpoints"][endpoint]


def test_all_in_is_arithmetic():
    all_in = AllIn(training=100.0, arm=12.0, reference=2.0)
    assert all_in.saving(math.log(0.7)) == pytest.approx(1 - (70 + 12) / 102)
    assert all_in.saving(all_in.log_ratio(0.2)) == pytest.approx(0.2)
    assert all_in.saving(math.inf) == -math.inf
    assert AllIn(training=10.0, arm=20.0, reference=0.0).log_ratio(0.2) == -math.inf
    assert TRAINING_ALONE.saving(math.log(0.7)) == pytest.approx(0.3)


def test_an_arm_pays_for_its_own_shards_and_not_for_the_corpus():
    study = study_of(synthesize(arms=(CLEAN,), items=0))
    mine = ledger.charges(study, "clean", "dense", "s")
    theirs = ledger.charges(study, "dense", "clean", "s")
    both = ledger.shared(study, "clean", "dense", "s")
    assert [charge.costs["time"].value for charge in mine] == [9.0]
    assert [charge.costs["time"].value for charge in theirs] == [3.0]
    assert [charge.costs["time"].value for charge in both] == [20.0]


def test_preparation_is_charged_at_the_longest_horizon_by_default():
    found = described()
    training_s = 1.4 * TOKENS / TOKENS_PER_STEP * STEP_S
    expected = 1 - ((1 - found["saving_training"]) * training_s + 9) / (training_s + 3)
    assert found["saving_all_in"] == pytest.approx(expected, abs=0.05)
    assert found["saving_all_in"] < found["saving_training"]


def test_a_larger_claimed_budget_dilutes_preparation():
    small, large = described(), described(budget=10**9)
    assert large["saving_all_in"] > small["saving_all_in"]
    assert large["saving_all_in"] == pytest.approx(large["saving_training"], abs=1e-3)


def test_flops_of_hashing_are_zero_so_nothing_changes():
    found = described(endpoint="flops")
    assert found["saving_all_in"] == found["saving_training"]
    assert found["break_even_tokens"] == 0.0


def test_break_even_is_where_the_all_in_saving_crosses_zero():
    found = described()
    tokens = found["break_even_tokens"]
    again = described(budget=round(tokens))
    assert again["saving_all_in"] == pytest.approx(0.0, abs=1e-4)


def test_break_even_says_why_there_is_none():
    known = Preparation(Cost(10.0), Cost(0.0))
    assert known.break_even_tokens(Cost(1.0), 0.1) == (None, "never: training itself saves nothing")
    assert known.break_even_tokens(Cost(1.0), math.log(0.5))[0] == pytest.approx(20.0)
    assert Preparation(Cost(None, "lost"), Cost(0.0)).break_even_tokens(Cost(1.0), -0.1) == (None, "lost")


def test_unknown_preparation_makes_the_all_in_saving_unknown():
    synthetic = synthesize(arms=(CLEAN,), items=0, layout="economical", energy="modelled")
    arm = judge_study(study_of(synthetic))["arms"]["clean"]["scales"]["s"]
    assert arm["endpoints"]["flops"]["outcome"] == "SAVES"
    assert arm["endpoints"]["energy"]["outcome"] == "NOT MEASURED"


def test_what_an_arm_needed_stands_in_the_order_of_the_plan():
    study = study_of(synthesize(items=0, seeds=8))
    teachers = study.planned("train", "dense", "s")[:8]
    cases = dict(study.cases)
    for student, teacher in zip(study.planned("train", "all", "s"), teachers, strict=False):
        cases[student.id] = student.model_copy(update={"parents": (teacher.id,)})
    needed = replace(study, cases=cases).needed("all", "s")
    trained = [key for key, case in needed.items() if case.kind == "train"]
    assert trained == [teacher.id for teacher in teachers[: len(trained)]]
    assert len(trained) > 3
