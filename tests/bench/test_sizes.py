"""Loss laws and savings against size, from records: planted truths, warnings, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.design import Design, Target
from bench.record import reading
from bench.report.html import render
from bench.report.numbers import si
from bench.report.page import compose
from bench.report.runfolder import load
from bench.verdict import judge, judge_study
from benchmarks.scaling import BESIROGLU
from tests.bench.synthetic import Planted, Synthetic, study_of, synthesize, write

PARAMS = {"a": 1e8, "b": 4e8, "c": 1.6e9, "d": 6.4e9}


def sized(
    *,
    scales: str = "abcd",
    dearer: float = 0.0,
    laws: bool = False,
    law_noise: float = 0.0005,
    target: Sequence[Target] = (),
    **world: Any,
) -> Synthetic:
    """A study of several scales, each with ten times the compute of the one before.

    Args:
        dearer: by how much ln cost of the arm grows from scale to scale: a saving that shrinks.
        laws: losses are those of Besiroglu's law; the arm's are those of a training 1 / 0.7 as long.
        law_noise: relative size of what each loss differs from it by.
    """
    planted = {"arms": (Planted("all", role="claim", saving=0.3),), "layout": "economical", "items": 0, "seeds": 4,
               "horizons": (0.4, 0.7, 1.0, 1.4, 2.0), "timing_blocks": 2, "noise": 0.01}  # fmt: skip
    synthetic = synthesize(**(planted | {"scales": tuple(scales)} | world))
    records = []
    for record in synthetic.records:
        case = record.case
        if case.kind == "train":
            number = scales.index(case.scale)
            factor = 10.0**number * (math.exp(dearer * number) if case.arm == "all" else 1.0)
            metrics = dict(record.metrics)
            metrics["train_flops"] = reading(record.value("train_flops") * factor, "FLOP", "counted")
            detail = record.detail
            if laws:
                tokens = case.horizon * 20 * PARAMS[case.scale]
                effective = tokens / (0.7 if case.arm == "all" else 1.0)
                wobble = 1 + law_noise * math.sin(7 * case.seed + number + case.horizon)
                loss = float(BESIROGLU.loss(PARAMS[case.scale], effective)) * wobble
                metrics["val_loss"] = reading(loss, "nat/token", "counted")
                detail = {**detail, "tokens": tokens}
            record = record.model_copy(update={"metrics": metrics, "detail": detail})
        records.append(record)
    plan = json.loads(json.dumps(synthetic.plan))
    for scale, facts in plan["arms"]["dense"].items():
        facts["params_total"] = int(PARAMS[scale])
    if target:
        plan["design"]["extrapolate"] = [one.model_dump() for one in target]
    return replace(synthetic, plan=plan, records=tuple(records))


def sizes(synthetic: Synthetic) -> Any:
    return judge_study(study_of(synthetic))["sizes"]


TARGET = (Target(params=70_000_000_000),)


def test_a_steady_saving_is_consistent_and_never_supported():
    found = sizes(sized(target=TARGET, noise=0.002))["arms"]["all"]
    assert found["outcome"] == "CONSISTENT WITH"
    assert found["at_targets"][0]["saving"] == pytest.approx(0.3, abs=0.02)
    low, high = found["at_targets"][0]["bounds"]
    assert low < 0.3 < high
    assert "nothing was trained there" in found["why"]


def test_a_saving_that_shrinks_is_warned_of_loudly():
    found = sizes(sized(dearer=0.1, target=TARGET, noise=0.002))["arms"]["all"]
    assert found["slope"] == pytest.approx(-0.1, abs=0.02)
    assert found["warning"].startswith("the saving of all shrinks with size")
    assert found["outcome"] == "NOT CONSISTENT WITH"


def test_each_size_that_it_is_carried_to_is_judged_by_itself(tmp_path):
    near, far = Target(params=8_000_000), *TARGET
    planted = sized(dearer=0.03, target=(near, far), noise=0.0002)
    found = sizes(planted)["arms"]["all"]
    outcomes = [there["outcome"] for there in found["at_targets"]]
    assert outcomes == ["CONSISTENT WITH", "NOT CONSISTENT WITH"]
    assert found["outcome"] == "NOT CONSISTENT WITH", "the worst of them"
    assert found["at_targets"][0]["saving"] > found["at_targets"][1]["saving"]
    assert f"{near.params:.3g}" in found["why"]
    assert f"{far.params:.3g}" in found["why"]
    run = write(tmp_path, planted)
    (run / "verdict.json").write_text(json.dumps(judge(run)))
    text = render(compose(load(run)))
    assert all(f"{si(one.params)} parameters and {si(one.training_tokens)} tokens" in text for one in (near, far))


def test_a_plan_that_knew_one_target_or_none_is_still_read():
    plan = sized(target=TARGET).plan["design"]
    assert Design.model_validate({**plan, "extrapolate": plan["extrapolate"][0]}).extrapolate == TARGET
    assert Design.model_validate({**plan, "extrapolate": None}).extrapolate == ()


def test_fewer_than_three_scales_are_not_measured_and_say_why():
    found = sizes(sized(scales="ab", target=TARGET))
    assert found["arms"]["all"]["outcome"] == "NOT MEASURED"
    assert "2 scales with a saving and its interval, 3 are needed" in found["arms"]["all"]["why"]
    assert found["laws"]["params"]["why"] is not None
    assert found["laws"]["chinchilla"]["why"] == "2 different sizes, 3 are needed"
    assert sizes(sized(scales="ab")) is None, "nobody asked"


def test_one_seed_a_scale_has_no_interval_to_carry():
    found = sizes(sized(seeds=1, target=TARGET))["arms"]["all"]
    assert "one seed gives no interval" in found["why"]


def test_the_baselines_law_is_the_one_that_it_was_drawn_from():
    found = sizes(sized(laws=True, target=TARGET, seeds=2))
    law = found["laws"]["chinchilla"]
    n, d = PARAMS["c"], 20 * PARAMS["c"]
    fitted = law["parameters"]
    loss = fitted["E"] + fitted["A"] / n ** fitted["alpha"] + fitted["B"] / d ** fitted["beta"]
    assert loss == pytest.approx(float(BESIROGLU.loss(n, d)), rel=0.003)
    assert law["residual_sd"] < 0.003
    assert law["at_targets"][0]["loss"] == pytest.approx(float(BESIROGLU.loss(7e10, 1.4e12)), rel=0.03)
    exponent = found["laws"]["flops"]
    assert exponent["bounds"][0] <= exponent["exponent"] <= exponent["bounds"][1]
    assert np.isclose(found["targets"][0]["flops"], 6 * 7e10 * 1.4e12)


def test_a_law_that_the_trainings_do_not_determine_is_not_carried_anywhere():
    """Tokens grow with size, so beside noise this large no size effect of its own can be told."""
    found = sizes(sized(laws=True, law_noise=0.3, target=[Target(params=1e10)]))
    law = found["laws"]["chinchilla"]
    assert law["parameters"] is None
    assert law["at_targets"] == []
    assert "holds 0" in law["why"]


def test_the_report_draws_the_law_and_the_band(tmp_path):
    run = write(tmp_path, sized(laws=True, target=TARGET, dearer=0.1, seeds=2))
    (run / "verdict.json").write_text(json.dumps(judge(run)))
    page = compose(load(run))
    text = render(page)
    assert "What several sizes say" in text
    assert 'id="sizes-law-loss-alt"' in text
    assert 'id="sizes-saving-all-alt"' in text
