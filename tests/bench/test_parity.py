"""Tuning parity is read from the records: a suite that says it tuned is not believed."""

from __future__ import annotations

import math

import pytest

from bench import ledger, parity
from tests.bench.synthetic import FLOPS_PER_TOKEN, TOKENS, TRIALS, study_of, synthesize
from tests.bench.test_verdict import with_records


def planted(**world):
    return synthesize(seeds=2, items=0, tuned=True, **world)


def changed_detail(record, **detail):
    return record.model_copy(update={"detail": {**record.detail, **detail}})


def is_training(record, arm="all"):
    return record.case.kind == "train" and not record.is_trial and record.case.arm == arm


def test_equal_trials_are_parity():
    assert parity.unequal(study_of(planted()), "s") is None


def test_a_study_without_trials_has_none():
    assert parity.unequal(study_of(synthesize(seeds=2, items=0)), "s") == "dense had no tuning trials"


def test_a_trial_that_never_finished_breaks_it():
    lost = next(r.case.id for r in planted().records if r.is_trial and r.case.arm == "moe")
    study = study_of(with_records(planted(), lambda r: None if r.case.id == lost else r))
    assert parity.unequal(study, "s") == "moe has 2 of 3 trials finished"


def test_fewer_trials_of_one_arm_break_it():
    synthetic = planted()
    lost = next(
        r.case.id for r in synthetic.records if r.is_trial and r.case.arm == "moe" and r.detail["trial"]["lr"] == 0.001
    )
    synthetic.plan["cases"] = [case for case in synthetic.plan["cases"] if case["id"] != lost]

    def forget(record):
        if record.case.id == lost:
            return None
        if not is_training(record, "moe"):
            return record
        tuning = record.detail["tuning"]
        kept = [one for one in tuning["trials"] if one["case"] != lost]
        return changed_detail(record, tuning={**tuning, "trials": kept})

    assert parity.unequal(study_of(with_records(synthetic, forget)), "s") == "dense had 3 trials, moe 2"


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (None, "does not say which trial"),
        ({"metric": "val_loss", "chosen": {"lr": 0.002}, "trials": []}, "among other trials"),
    ],
)
def test_a_training_that_took_its_setting_from_elsewhere_breaks_it(tuning, words):
    study = study_of(with_records(planted(), lambda r: changed_detail(r, tuning=tuning) if is_training(r) else r))
    assert words in (parity.unequal(study, "s") or "")


def test_a_training_at_another_than_the_best_setting_breaks_it():
    def worse(record):
        if not is_training(record):
            return record
        return changed_detail(record, tuning={**record.detail["tuning"], "chosen": {"lr": 0.001}})

    assert "not trained at the best setting" in (parity.unequal(study_of(with_records(planted(), worse)), "s") or "")


def test_the_verdict_holds_grid_choice_and_cost_and_no_arm_is_charged_for_it():
    study = study_of(planted())
    found = parity.describe(study, "s")
    assert found is not None
    assert found["equal"] is True
    arm = found["arms"]["all"]
    assert arm["chosen"] == {"lr": 0.002}
    assert [one["lr"] for one in arm["grid"]] == list(TRIALS)
    assert math.isclose(arm["cost"]["flops"], 3 * 0.25 * TOKENS * FLOPS_PER_TOKEN)
    assert arm["cost"]["energy"] is None
    labels = [charge.label for charge in ledger.charges(study, "all", "dense", "s")]
    assert labels == ["prepare all"]
    assert not any(record.is_trial for record in study.trainings("all", "s", 1_000_000))


def test_trials_change_no_saving():
    from bench.verdict import judge_study

    plain = judge_study(study_of(synthesize(seeds=3, items=0)))["arms"]["all"]["scales"]["s"]["endpoints"]["flops"]
    tuned = judge_study(study_of(synthesize(seeds=3, items=0, tuned=True)))["arms"]["all"]["scales"]["s"]["endpoints"][
        "flops"
    ]
    assert tuned["saving_training"] == plain["saving_training"]
    assert tuned["bounds"] == plain["bounds"]
