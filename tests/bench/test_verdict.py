"""Planted truths are found, and every way of not knowing is said instead of guessed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from bench import api, words
from bench.endpoints import sign_disagreement
from bench.record import RecordError, Status, to_line
from bench.stats.effect import quantile
from bench.stats.power import power, seeds_needed
from bench.study import StudyError
from bench.verdict import judge, judge_study
from tests.bench.synthetic import TASKS, Planted, Synthetic, make_run, study_of, synthesize

CLAIM = Planted("all", role="claim", saving=0.3)
BIG = {"items": 4000, "seed_accuracy_sd": 0.0}
"""Enough items for accuracy to be decided."""


def judged(synthetic: Synthetic) -> dict:
    verdict = judge_study(study_of(synthetic))
    json.dumps(verdict, allow_nan=False)
    return verdict


def arm_of(synthetic: Synthetic, name: str = "all") -> dict:
    return judged(synthetic)["arms"][name]


def endpoint_of(synthetic: Synthetic, name: str = "all", endpoint: str = "flops") -> dict:
    return arm_of(synthetic, name)["scales"]["s"]["endpoints"][endpoint]


def with_records(synthetic: Synthetic, change) -> Synthetic:
    """The study with each record changed; a change that gives None removes it."""
    return replace(synthetic, records=tuple(new for old in synthetic.records if (new := change(old)) is not None))


# --- claims --------------------------------------------------------------------------------------


def test_a_true_saving_without_a_drop_is_supported():
    arm = arm_of(synthesize(saving=0.3, seeds=5, **BIG))
    assert arm["outcome"] == "SUPPORTED"
    at_scale = arm["scales"]["s"]
    assert [condition["met"] for condition in at_scale["conditions"]] == [True] * 5
    low, high = at_scale["endpoints"]["flops"]["bounds"]
    assert 0.2 < low < 0.3 < high or low == pytest.approx(0.3, abs=0.02)
    assert arm["next"] is None


def test_too_small_a_saving_is_refuted():
    arm = arm_of(synthesize(saving=0.05, seeds=5, items=0))
    assert arm["outcome"] == "REFUTED"
    assert "even the upper bound" in arm["why"]


def test_a_saving_at_the_claim_is_neither():
    arm = arm_of(synthesize(saving=0.2, seeds=3, items=0, noise=0.05))
    assert arm["outcome"] == "INCONCLUSIVE"


def test_a_drop_above_the_margin_is_refuted_whatever_it_saves():
    arm = arm_of(synthesize(saving=0.3, accuracy_drop=0.04, seeds=5, **BIG))
    assert arm["scales"]["s"]["endpoints"]["flops"]["outcome"] == "SUPPORTED"
    assert arm["scales"]["s"]["accuracy"]["outcome"] == "REFUTED"
    assert arm["outcome"] == "REFUTED"


def test_few_items_leave_accuracy_open_and_say_how_many_would_do():
    arm = arm_of(synthesize(saving=0.3, seeds=5, items=600, seed_accuracy_sd=0.0))
    accuracy = arm["scales"]["s"]["accuracy"]
    assert accuracy["outcome"] == "INCONCLUSIVE"
    assert arm["outcome"] == "INCONCLUSIVE"
    assert accuracy["detectable_margin"] > 0.01
    assert arm["next"].startswith("add items: about")


@pytest.mark.parametrize(("saving", "outcome"), [(0.3, "SUPPORTED"), (0.05, "REFUTED")])
def test_a_confirming_study_without_controls_decides_nothing_either_way(saving, outcome):
    arm = arm_of(synthesize(saving=saving, seeds=5, purpose="confirm", tuned=False, **BIG))
    assert arm["outcome"] == "INCONCLUSIVE"
    assert arm["why"].startswith(
        f"would be {outcome} if every arm had had the same number of tuning trials (dense had no tuning trials) and "
        "the smaller"
    )


def test_an_arm_that_only_trains_less_is_called_out_by_the_truncated_control():
    arm = arm_of(synthesize(saving=0.0, seeds=5, items=0))
    truncated = next(one for one in arm["scales"]["s"]["conditions"] if one["name"] == "truncated_control")
    assert truncated["met"] is False


def test_the_economical_layout_finds_the_same_saving():
    described = endpoint_of(synthesize(saving=0.25, seeds=5, items=0, layout="economical"))
    assert described["saving_training"] == pytest.approx(0.25, abs=0.02)
    assert described["reading"] == "reference's curve"


def test_several_claims_are_adjusted_and_both_bounds_are_kept():
    arms = (replace(CLAIM, name="one", saving=0.21), replace(CLAIM, name="two", saving=0.2))
    verdict = judged(synthesize(arms=arms, seeds=4, items=0, noise=0.03))["arms"]
    two = verdict["two"]["scales"]["s"]["endpoints"]["flops"]
    assert two["bounds_adjusted"][0] < two["bounds"][0]
    assert two["bounds_adjusted"][1] > two["bounds"][1]


@pytest.mark.parametrize(("saving", "noise"), [(0.22, 0.03), (0.16, 0.03)])
def test_an_interval_that_only_holds_the_claim_once_adjusted_is_not_said_to_hold_it_as_it_is(saving, noise):
    arms = (replace(CLAIM, name="one", saving=saving), replace(CLAIM, name="two", saving=0.2))
    described = judged(synthesize(arms=arms, seeds=4, items=0, noise=noise))["arms"]["one"]["scales"]["s"]["endpoints"]
    low, high = described["flops"]["bounds"]
    assert low > 0.2 or high < 0.2
    assert described["flops"]["outcome"] == "INCONCLUSIVE"
    adjusted = words.interval(described["flops"]["bounds_adjusted"])
    why = f"adjusted for several claims the interval, {adjusted}, holds the claimed 20%"
    assert described["flops"]["why"].endswith(why)


@pytest.mark.parametrize("purpose", ["explore", "confirm"])
@pytest.mark.parametrize("claims", [1, 2])
def test_the_seeds_that_are_advised_would_decide_at_the_error_they_are_judged_at(purpose, claims):
    """Adjusted for several claims, and halved where more seeds are another look of a confirming study."""
    arms = [Planted(f"claim-{n}", role="claim", saving=0.22) for n in range(claims)]
    found = arm_of(synthesize(arms=arms, seeds=4, items=0, noise=0.05, purpose=purpose, energy=None), "claim-0")
    described = found["scales"]["s"]["endpoints"]["flops"]
    low, high = (math.log1p(-bound) for bound in described["bounds_adjusted"])
    assert found["outcome"] == "INCONCLUSIVE"
    assert high < math.log(0.8) < low
    alpha = 0.025 / claims / (2 if purpose == "confirm" else 1)
    value = described["saving_all_in"]
    noise = described["noise"]
    needed = seeds_needed(abs(math.log1p(-value) - math.log(0.8)), noise["sd"], alpha, arms=noise["arms"])
    assert needed is not None
    assert f"({needed} in all" in found["next"], (needed, found["next"])
    judged_at, df = 0.025 / claims, described["df"]
    room, se = math.log(0.8) - math.log1p(-described["detectable_saving"]), (low - high) / 2 / quantile(judged_at, df)
    assert power(room, se, df, judged_at) == pytest.approx(0.8, abs=1e-6)


def test_advised_seeds_go_by_the_noise_that_the_interval_goes_by():
    """An arm that looks quiet by luck has its class's interval; its own SD would promise to decide in no time."""
    arms = [Planted(f"part-{n}", saving=0.02) for n in range(6)]
    at_scale = judged(synthesize(arms=arms, layout="economical", seeds=3, items=0, noise=0.05, energy=None))["arms"]
    undecided = [arm for arm in at_scale.values() if arm["outcome"] == "UNCLEAR"]
    pooled = [arm for arm in undecided if "additive" in arm["scales"]["s"]["endpoints"]["flops"]["how"]]
    assert len(pooled) == 2
    for arm in pooled:
        described = arm["scales"]["s"]["endpoints"]["flops"]
        low, high = (math.log1p(-bound) for bound in described["bounds"])
        se = (low - high) / 2 / quantile(0.025, described["df"])
        assert described["noise"]["arms"] == 6
        assert 0.88 * described["noise"]["sd"] / math.sqrt(3) == pytest.approx(se)  # .88: bench.stats.additive
        needed = seeds_needed(abs(math.log1p(-described["saving_all_in"])), described["noise"]["sd"], 0.025, arms=6)
        assert (f"({needed} in all" if needed else "no number of seeds") in arm["next"]


def test_two_scales_must_agree():
    arm = arm_of(synthesize(saving=0.3, seeds=5, scales=("s", "m"), **BIG))
    assert set(arm["scales"]) == {"s", "m"}
    assert arm["outcome"] == "SUPPORTED"


# --- components and timing -----------------------------------------------------------------------


@pytest.mark.parametrize(("saving", "outcome"), [(0.08, "SAVES"), (-0.08, "COSTS"), (0.0, "UNCLEAR")])
def test_components_are_held_against_zero(saving, outcome):
    arms = (Planted("part", saving=saving),)
    arm = arm_of(synthesize(arms=arms, seeds=5, items=0, layout="economical", draw=4), "part")
    assert arm["outcome"] == outcome


@pytest.mark.parametrize("layout", ["full", "economical"])
@pytest.mark.parametrize("seeds", [2, 5])
def test_an_arm_that_ends_exactly_as_its_reference_neither_saves_nor_costs(layout, seeds):
    """A data step that drops nothing: the same text, the same losses, and no noise to hide a rounding in."""
    found = synthesize(arms=(Planted("clean"),), layout=layout, seeds=seeds, items=0)
    losses = {
        record.case.seed: record.metrics["val_loss"]
        for record in found.records
        if (record.case.kind, record.case.arm, record.case.horizon) == ("train", "dense", 1.0)
    }

    def same(record):
        if (record.case.kind, record.case.arm) != ("train", "clean"):
            return record
        return record.model_copy(update={"metrics": {**record.metrics, "val_loss": losses[record.case.seed]}})

    arm = arm_of(with_records(found, same), "clean")
    assert arm["outcome"] == "UNCLEAR", arm["why"]
    assert arm["why"].startswith("saves 0.0% [0.0, 0.0] of the training FLOPs"), arm["why"]


def test_a_parallel_arm_keeps_its_own_small_noise():
    arms = (
        Planted("bf16", saving=0.02, parallel=True, noise=0.0),
        Planted("moe", saving=0.1, noise=0.05),
        Planted("clean", saving=0.1, noise=0.05),
    )
    verdict = judged(synthesize(arms=arms, seeds=5, items=0, layout="economical"))["arms"]
    found = {name: arm["scales"]["s"]["endpoints"]["flops"] for name, arm in verdict.items()}
    assert found["bf16"]["how"] == "paired t"
    assert found["moe"]["how"].startswith("additive model")
    assert found["bf16"]["sd"] < found["moe"]["sd"] / 3


def test_a_timing_arm_saves_or_costs_by_step():
    arms = (Planted("fp32", role="timing", step_ratio=1.8), Planted("fast", role="timing", step_ratio=0.7))
    verdict = judged(synthesize(arms=arms, items=0))["arms"]
    assert verdict["fp32"]["outcome"] == "COSTS"
    assert verdict["fast"]["outcome"] == "SAVES"
    low, high = verdict["fast"]["scales"]["s"]["endpoints"]["time"]["bounds"]
    assert low < 0.3 < high


def test_an_arm_may_name_another_reference():
    arms = (Planted("small", saving=0.0), Planted("big", saving=0.1, against="small"))
    assert arm_of(synthesize(arms=arms, seeds=4, items=0, layout="economical"), "big")["against"] == "small"


# --- seconds and joules --------------------------------------------------------------------------


def test_time_is_the_token_ratio_times_the_step_ratio():
    arms = (replace(CLAIM, flops_ratio=1.1, step_ratio=1.05),)
    described = endpoint_of(synthesize(arms=arms, seeds=5, items=0), endpoint="time")
    truth = 1 - 0.7 / 1.1 * 1.05
    assert described["saving_training"] == pytest.approx(truth, abs=0.03)
    assert described["bounds"][0] < truth < described["bounds"][1]


def test_a_sign_disagreement_is_flagged():
    at_scale = arm_of(synthesize(saving=0.3, timing_ratio=2.0, items=0))["scales"]["s"]
    assert at_scale["sign_disagreement"].startswith("saves training FLOPs")
    assert "costs more training time" in at_scale["sign_disagreement"]


def test_a_sign_that_is_not_shown_is_not_claimed():
    """Means on two sides of zero are chance where an interval holds zero: the warning says which is not shown."""

    def said(flops, time):
        ends = {"flops": flops, "time": time}
        return sign_disagreement(
            {name: {"saving_all_in": sum(two) / 2, "bounds": list(two)} for name, two in ends.items()}
        )

    assert said((0.1, 0.3), (-0.4, -0.2)) == "saves training FLOPs but costs more training time"
    assert said((-0.1, 0.3), (-0.4, -0.2)) == "costs more training time; that it saves training FLOPs is not shown"
    assert said((0.1, 0.3), (-0.4, 0.2)) == "saves training FLOPs; whether it costs more training time is not shown"
    unshown = "may save training FLOPs and cost more training time: the means say so, no interval shows either"
    assert said((-0.1, 0.3), (-0.4, 0.2)) == unshown
    assert said((0.1, 0.3), (0.1, 0.2)) is None


@pytest.mark.parametrize(
    ("energy", "words"), [("modelled", "modelled"), (None, "no RAPL in this VM")], ids=["modelled", "no sensor"]
)
def test_energy_without_a_meter_is_not_measured(energy, words):
    described = endpoint_of(synthesize(energy=energy, items=0), endpoint="energy")
    assert described["outcome"] == "NOT MEASURED"
    assert words in described["why"]


def test_energy_on_other_scopes_is_not_compared():
    def elsewhere(record):
        if record.case.arm != "all" or record.case.kind != "train":
            return without_blocks(record)
        reading = record.metrics["energy_j"].model_copy(update={"scope": "gpu0"})
        return record.model_copy(update={"metrics": {**record.metrics, "energy_j": reading}})

    described = endpoint_of(with_records(synthesize(items=0), elsewhere), endpoint="energy")
    assert described["outcome"] == "NOT MEASURED"
    assert "scopes" in described["why"]


def without_blocks(record):
    """A timing whose blocks hold no joules."""
    if record.case.kind != "timing":
        return record
    blocks = [{**block, "arm_j": None, "reference_j": None} for block in record.detail["blocks"]]
    return record.model_copy(update={"detail": {**record.detail, "blocks": blocks}})


def test_energy_comes_from_trainings_where_blocks_have_none():
    described = endpoint_of(with_records(synthesize(items=0, seeds=5), without_blocks), endpoint="energy")
    assert described["source"] == "trainings, paired by seed"
    assert described["saving_training"] == pytest.approx(1 - 0.72 / 1.02 * 1.4, abs=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"segments": 2}, "resumed"), ({"env": "another"}, "several machines"), ({"commit": "1" * 40}, "several commits")],
)
def test_a_timing_that_was_resumed_or_taken_elsewhere_is_no_evidence(change, words):
    def changed(record):
        is_mine = record.case.kind == "timing" and record.case.arm == "all"
        return record.model_copy(update=change) if is_mine else record

    synthetic = with_records(synthesize(items=0), changed)
    described = endpoint_of(synthetic, endpoint="time")
    assert described["outcome"] == "NOT MEASURED"
    assert words in described["why"]
    assert endpoint_of(synthetic)["outcome"] != "NOT MEASURED"


# --- not knowing ---------------------------------------------------------------------------------


def test_one_seed_decides_nothing():
    verdict = judged(synthesize(saving=0.4, seeds=1, **BIG))["arms"]
    assert verdict["all"]["outcome"] == "INCONCLUSIVE"
    assert "one seed gives no interval" in verdict["all"]["why"]
    assert verdict["clean"]["outcome"] == "UNCLEAR"
    assert verdict["all"]["scales"]["s"]["accuracy"]["outcome"] == "NOT MEASURED"


def test_a_bound_that_is_a_cost_is_called_one():
    why = endpoint_of(synthesize(saving=-0.3, seeds=5, items=0))["why"]
    assert re.search(r"even the upper bound \(\d+\.\d% more\) is below the claimed 20%", why), why


def test_an_unfinished_study_names_what_is_missing():
    def unfinished(record):
        return None if (record.case.arm, record.case.seed, record.case.kind) == ("all", 2, "train") else record

    arm = arm_of(with_records(synthesize(items=0), unfinished))
    assert arm["outcome"] == "NOT MEASURED"
    assert "the study is not finished: 4 of" in arm["why"]
    assert "train all/s seed 2" in arm["why"]
    assert arm["scales"]["s"]["endpoints"]["flops"]["n_seeds"] == 2


def test_a_single_record_is_enough_to_say_not_measured():
    synthetic = synthesize()
    verdict = judged(replace(synthetic, records=synthetic.records[:1]))
    assert {arm["outcome"] for arm in verdict["arms"].values()} == {"NOT MEASURED"}


def test_failed_seeds_are_missing_and_said():
    arms = (replace(CLAIM, failed=(1,)),)
    described = endpoint_of(synthesize(arms=arms, seeds=5, items=0))
    assert described["n_seeds"] == 4
    assert "out of memory" in described["dropped_seeds"]["1"]
    assert described["outcome"] == "SUPPORTED"


def test_a_diverged_seed_is_never_dropped():
    arms = (replace(CLAIM, diverged=(1,)),)
    arm = arm_of(synthesize(arms=arms, seeds=5, items=0))
    described = arm["scales"]["s"]["endpoints"]["flops"]
    assert described["n_seeds"] == 5
    assert described["censored"]["never_reached"] == 1
    assert described["bounds"][0] is None
    assert arm["outcome"] != "SUPPORTED"


def test_an_arm_that_always_diverges_is_refuted_only_with_enough_seeds():
    few, many = (
        endpoint_of(synthesize(arms=(replace(CLAIM, diverged=tuple(range(n))),), seeds=n, items=0)) for n in (3, 6)
    )
    assert few["outcome"] == "INCONCLUSIVE"
    assert many["outcome"] == "REFUTED"


def test_far_better_than_the_curve_saves_with_an_open_upper_bound():
    described = endpoint_of(synthesize(arms=(replace(CLAIM, saving=0.7),), seeds=5, items=0))
    assert described["censored"]["reached_at_once"] == 5
    assert described["bounds"][1] is None
    assert described["bounds"][0] > 0.3
    assert described["saving_training"] is None


def test_a_claim_of_time_far_better_than_the_curve_is_held_against_its_claim_point():
    """What a FLOP takes is known where the saving itself is open; only a slow one makes the claim point cost more."""
    quick, slow = (
        endpoint_of(
            synthesize(arms=(Planted("all", role="claim", saving=0.6, step_ratio=r),), seeds=5), endpoint="time"
        )
        for r in (0.9, 1.2)
    )
    assert quick["saving_all_in"] is None
    assert quick["outcome"] == "SUPPORTED", quick["why"]
    assert slow["outcome"] == "INCONCLUSIVE"
    assert "the claim point, which is set in FLOPs, costs more" in slow["why"]


def test_disagreeing_counts_are_no_evidence():
    def disagree(record):
        if record.case.arm != "all" or record.case.kind != "train":
            return record
        counts = {"agree": False, "disagreement": "closed 1e13, dispatched 2e13"}
        return record.model_copy(update={"detail": {**record.detail, "counts": counts}})

    arm = arm_of(with_records(synthesize(items=0), disagree))
    assert arm["outcome"] == "NOT MEASURED"
    assert "dispatched 2e13" in arm["why"]


def test_uncounted_flops_never_support():
    def uncounted(record):
        return record.model_copy(update={"detail": {k: v for k, v in record.detail.items() if k != "counts"}})

    arm = arm_of(with_records(synthesize(saving=0.3, seeds=5, **BIG), uncounted))
    assert arm["outcome"] == "INCONCLUSIVE"
    assert "second count" in arm["why"]


def test_where_every_seed_diverged_it_says_so_and_what_to_do():
    arm = arm_of(synthesize(arms=(Planted("all", role="claim", diverged=(0, 1, 2)),), seeds=3, items=0))
    assert "no seed has a size, so there is no interval: 6 seeds that all agree would be a sign test" in arm["why"]
    assert arm["next"].startswith("lower the learning rate of all: ")


def test_where_nothing_was_trained_no_count_agrees():
    seeds = (0, 1, 2)
    arms = (Planted("all", role="claim", failed=seeds), Planted("moe", failed=seeds))
    synthetic = synthesize(arms=arms, seeds=3, items=0)

    def fail(record):
        if record.case.kind != "train":
            return record
        return record.model_copy(update={"status": "failed", "reason": "no room", "metrics": {}, "detail": {}})

    conditions = arm_of(with_records(synthetic, fail))["scales"]["s"]["conditions"]
    assert {condition["met"] for condition in conditions} == {None}


def test_a_bound_that_says_nothing_is_not_said():
    arms = (Planted("all", role="claim", saving=-9.0, noise=1.0),)
    synthetic = synthesize(arms=arms, seeds=2, items=0, layout="economical")
    found = endpoint_of(synthetic)
    assert found["censored"]["never_reached"] == 2
    assert found["bounds"][1] > 0.9995
    assert "at most" not in found["why"]


# --- accuracy ------------------------------------------------------------------------------------


def test_tasks_at_chance_do_not_count_and_their_family_is_named():
    tasks = (TASKS[0], TASKS[1], replace(TASKS[2], accuracy=0.5))
    accuracy = arm_of(synthesize(saving=0.3, seeds=5, tasks=tasks, **BIG))["scales"]["s"]["accuracy"]
    assert accuracy["tasks"]["vitaminc"]["counted"] is False
    assert accuracy["families"]["nli"]["outcome"] == "NOT MEASURED"
    assert "natural-language inference" in accuracy["why"]


def test_nothing_but_chance_is_not_measured():
    tasks = tuple(replace(task, accuracy=0.5) for task in TASKS)
    arm = arm_of(synthesize(saving=0.3, seeds=5, tasks=tasks, **BIG))
    assert arm["scales"]["s"]["accuracy"]["outcome"] == "NOT MEASURED"
    assert arm["outcome"] == "NOT MEASURED"


def test_a_task_that_half_the_compute_does_not_hurt_does_not_count():
    tasks = tuple(replace(task, per_doubling=0.0) for task in TASKS)
    accuracy = arm_of(synthesize(saving=0.3, seeds=5, tasks=tasks, draw=2, **BIG))["scales"]["s"]["accuracy"]
    assert accuracy["outcome"] == "NOT MEASURED"
    assert "half-compute" in accuracy["why"]


@pytest.mark.parametrize(("name", "passages"), [("cloze", 3), ("one", 1)])
def test_a_task_whose_passages_all_fall_to_one_side_of_the_split_does_not_count(name: str, passages: int):
    """None of `cloze`'s three is set apart, and the only one of `one` is: nothing is left to compare, or to test on."""
    tasks = (*TASKS[1:], replace(TASKS[0], name=name, passages=passages))
    accuracy = arm_of(synthesize(saving=0.3, seeds=5, tasks=tasks, **BIG))["scales"]["s"]["accuracy"]
    assert accuracy["tasks"][name]["counted"] is False
    assert f"{passages} passage" in accuracy["families"]["lm"]["why"]
    assert "too few" in accuracy["families"]["lm"]["why"]


def test_accuracy_that_could_not_have_failed_is_capped():
    """Half the compute hurts by 2 points, 20% less by 0.6: within a margin of 5."""
    tasks = tuple(replace(task, per_doubling=0.02) for task in TASKS)
    accuracy = arm_of(synthesize(saving=0.3, seeds=5, tasks=tasks, margin=0.05, **BIG))["scales"]["s"]["accuracy"]
    assert accuracy["outcome"] == "INCONCLUSIVE"
    assert "could not have failed" in accuracy["why"]


def test_a_relative_margin_is_tested_against_the_references_own_accuracy():
    arm = arm_of(synthesize(saving=0.3, accuracy_drop=0.01, seeds=5, margin=0.04, margin_kind="relative", **BIG))
    accuracy = arm["scales"]["s"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(-0.01, abs=0.01)
    assert "% of the reference" in accuracy["why"]


def test_without_items_seeds_alone_decide_and_it_is_said():
    synthetic = replace(synthesize(saving=0.3, seeds=5, **BIG), items={})
    accuracy = arm_of(synthetic)["scales"]["s"]["accuracy"]
    assert "not kept" in accuracy["note"]
    assert accuracy["difference"] is not None


def test_other_items_in_one_evaluation_are_refused():
    synthetic = synthesize(items=300)
    case, table = next(iter(synthetic.items.items()))
    broken = {**table, "item": ["x", *table["item"][1:]]}
    with pytest.raises(StudyError, match="items of task"):
        judged(replace(synthetic, items={**synthetic.items, case: broken}))


# --- looks ---------------------------------------------------------------------------------------


def test_each_look_of_a_confirming_study_halves_alpha(tmp_path):
    run = make_run(tmp_path, seeds=3, items=0, purpose="confirm")
    assert judge(run)["look"] == {"number": 1, "alpha": 0.025}
    looks = [json.dumps({"records": [f"{n}"]}) for n in range(2)]
    (run / "looks.jsonl").write_text("".join(line + "\n" for line in looks))
    assert judge(run)["look"] == {"number": 3, "alpha": 0.00625}


def test_looking_again_at_the_same_records_costs_nothing(tmp_path):
    run = make_run(tmp_path, seeds=3, items=0, purpose="confirm")
    hashes = [json.loads(line)["sha256"] for line in (run / "records.jsonl").read_text().splitlines()]
    (run / "looks.jsonl").write_text(json.dumps({"records": hashes}) + "\n")
    assert judge(run)["look"] == {"number": 1, "alpha": 0.025}


def test_a_look_that_was_never_finished_is_written_again(tmp_path):
    run = make_run(tmp_path, seeds=3, items=0, purpose="confirm")
    api.judge(run)
    (look,) = (run / "looks.jsonl").read_text().splitlines()
    (run / "looks.jsonl").write_text(look[:40])
    api.judge(run)
    (again,) = (run / "looks.jsonl").read_text().splitlines()
    assert json.loads(again)["records"] == json.loads(look)["records"]


# --- from disk -----------------------------------------------------------------------------------


def test_a_folder_is_judged_as_memory_is(tmp_path):
    synthetic = synthesize(saving=0.3, seeds=3, items=400)
    run = make_run(tmp_path, saving=0.3, seeds=3, items=400)
    assert judge(run)["arms"] == judged(synthetic)["arms"]


def break_line(run, change):
    path = run / "records.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in change(lines)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace('"schema":1', '"schema":2'), *lines[1:]], "schema version 2"),
        (lambda lines: [lines[0].replace('"attempt":1', '"attempt":2'), *lines[1:]], "edited"),
        (lambda lines: [*lines, lines[0]], "two finished records"),
        (lambda lines: ["{not json", *lines], "not a record"),
        (lambda lines: [lines[0].replace('"value":', '"value":NaN,"v":', 1), *lines[1:]], "NaN"),
        (lambda lines: lines[:0], "no record"),
    ],
    ids=["other schema", "edited", "duplicate", "garbage", "nan", "empty"],
)  # fmt: skip
def test_records_that_cannot_be_trusted_give_no_verdict(tmp_path, change, words):
    run = make_run(tmp_path, items=0)
    break_line(run, change)
    with pytest.raises((RecordError, StudyError), match=words):
        judge(run)


def test_records_of_another_run_are_refused(tmp_path):
    run, other = make_run(tmp_path / "a", items=0), make_run(tmp_path / "b", items=0, seeds=4)
    stranger = (other / "records.jsonl").read_text().splitlines()[-1]
    break_line(run, lambda lines: [*lines, stranger])
    with pytest.raises(StudyError, match="another suite or run"):
        judge(run)


def test_a_record_that_contradicts_the_plan_is_refused(tmp_path):
    run = make_run(tmp_path, items=0)
    record = next(record for record in synthesize(items=0).records if record.case.kind == "train")
    wrong = record.model_copy(update={"case": record.case.model_copy(update={"horizon": 0.123})})
    break_line(run, lambda lines: [*lines[:0], to_line(wrong)])
    with pytest.raises(StudyError, match="says train"):
        judge(run)


def test_edited_items_are_refused(tmp_path):
    run = make_run(tmp_path, items=200)
    path = next((run / "cases").rglob("items.parquet"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StudyError, match="edited or damaged"):
        judge(run)


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"plan\.json: not there"):
        judge(tmp_path)


@pytest.mark.parametrize("status", ["failed"])
def test_a_failed_attempt_before_a_finished_one_counts_for_nothing(tmp_path, status: Status):
    run = make_run(tmp_path, items=0)
    first = next(record for record in synthesize(items=0).records if record.case.kind == "train")
    failed = first.model_copy(update={"status": status, "metrics": {}, "detail": {}, "reason": "killed"})
    before = judge(run)
    break_line(run, lambda lines: [to_line(failed), *lines])
    assert judge(run)["arms"] == before["arms"]


def test_judging_needs_neither_torch_nor_the_techniques():
    code = (
        "import sys, bench.record, bench.metrics, bench.stats, bench.ledger, bench.verdict, bench.gate, bench.explain;"
        "assert not {'torch', 'lmopt', 'pandas', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_ten_thousand_records_are_judged_in_ten_seconds(tmp_path):
    arms = tuple(Planted(f"arm{n}", role="claim" if n < 3 else "component", saving=0.1) for n in range(40))
    planted = {"arms": arms, "seeds": 50, "scales": ("a", "b", "c", "d"), "items": 0, "layout": "economical"}
    run = make_run(tmp_path, **planted)
    assert len((run / "records.jsonl").read_text().splitlines()) > 9_500
    started_s = time.process_time()
    judge(run)
    assert time.process_time() - started_s < 10


@pytest.mark.parametrize(
    ("less_than", "kind", "words"),
    [(0.01, "absolute", "margin 1 point:"), (0.02, "absolute", "margin 2 points:"),
     (0.005, "absolute", "margin 0.5 points:"), (0.01, "relative", "margin 1% of the reference:")],
)  # fmt: skip
def test_a_margin_is_said_in_good_english(less_than, kind, words):
    found = arm_of(synthesize(saving=0.3, seeds=3, margin=less_than, margin_kind=kind))["scales"]["s"]["accuracy"]
    assert words in found["why"]


def test_a_single_seed_with_a_size_gives_no_interval_and_is_said():
    """The other one never reached the loss and does not say by how much: nothing was measured only once."""
    arms = (Planted("all", role="claim", saving=0.3, diverged=(1,)),)
    arm = arm_of(synthesize(arms=arms, seeds=2, items=0, energy=None))
    assert "; only one seed has a size, so there is no interval" in arm["why"]
