"""Factors, interactions and the product of savings: planted truths through the path from records to verdict."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bench.report.html import render
from bench.report.page import compose
from bench.report.runfolder import load
from bench.verdict import judge, judge_study
from tests.bench.dissected import taken_apart
from tests.bench.synthetic import study_of, write

QUIET: dict[str, Any] = {"noise": 1e-6, "seed_noise": 0.01, "seeds": 2}
TWO = {"clean": 0.1, "moe": 0.2}
FOUR = {"clean": 0.05, "moe": 0.1, "lr": 0.08, "mix": -0.04}


def ablation(synthetic: Any) -> dict[str, Any]:
    return judge_study(study_of(synthetic))["ablation"]["scales"]["s"]


def test_a_quiet_factorial_reads_what_was_planted():
    found = ablation(taken_apart(TWO, pairs={("clean", "moe"): 0.06}, **QUIET))
    moe = found["factors"]["moe"]
    assert moe["alone"]["saving"] == pytest.approx(0.2, abs=0.005)
    within = 1 - 0.8 * math.exp(0.06)
    assert moe["within"]["saving"] == pytest.approx(within, abs=0.005)
    assert moe["within"]["cost_without"] == pytest.approx(1 / (1 - within) - 1, abs=0.007)
    assert moe["average"]["saving"] == pytest.approx(1 - 0.8 * math.exp(0.03), abs=0.005)
    (pair,) = found["interactions"]
    assert pair["effect"] == pytest.approx(0.03, abs=0.003)
    assert pair["departure"] == pytest.approx(math.expm1(0.06), abs=0.006)
    assert (pair["outcome"], pair["aliases"]) == ("LESS THAN THE PRODUCT", [])
    assert found["multiply"]["departure"] == pytest.approx(math.expm1(0.06), abs=0.006)
    assert found["multiply"]["product"] == pytest.approx(1 - 0.9 * 0.8, abs=0.006)
    assert found["multiply"]["by"] == "measured singles"
    assert "save less together than apart" in found["multiply"]["why"]


def test_without_a_factor_the_whole_costs_more_is_said_with_its_sign():
    found = ablation(taken_apart(TWO, generators=None, designs=("leave_one_out",), **QUIET))
    clean = found["factors"]["clean"]["within"]
    assert clean["outcome"] == "SAVES"
    assert clean["why"].startswith("without clean, all needs 11.")
    assert "more [" in clean["why"]
    assert found["factors"]["clean"]["average"] is None


def test_a_harmful_factor_costs_and_the_whole_is_cheaper_without_it():
    found = ablation(taken_apart({"clean": 0.1, "bad": -0.15}, generators=None, **QUIET))
    bad = found["factors"]["bad"]["within"]
    assert bad["outcome"] == "COSTS"
    assert "fewer [" in bad["why"]


def test_a_half_fraction_states_its_aliases_and_answers_through_pairs():
    synthetic = taken_apart(FOUR, pairs={("clean", "moe"): 0.05}, generators=("D=ABC",), **QUIET)
    found = ablation(synthetic)
    assert found["factors"]["clean"]["average"]["aliases"] == ["moe \u00d7 lr \u00d7 mix"]
    assert [one["aliases"] for one in found["interactions"]] == [
        ["lr \u00d7 mix"],
        ["moe \u00d7 mix"],
        ["moe \u00d7 lr"],
    ]
    assert found["multiply"]["by"].startswith("interactions of pairs")
    assert found["multiply"]["departure"] == pytest.approx(math.expm1(0.05), abs=0.006)
    assert found["factors"]["lr"]["alone"] is None, "the design has no such arm"


def test_resolution_three_does_not_answer_whether_savings_multiply():
    found = ablation(taken_apart(FOUR | {"five": 0.02}, generators=("D=AB", "E=AC"), **QUIET))
    assert found["multiply"]["outcome"] == "NOT MEASURED"
    assert "add `add_one`" in found["multiply"]["why"]
    assert found["factors"]["clean"]["average"]["aliases"][:2] == ["moe \u00d7 mix", "lr \u00d7 five"]


def test_a_cell_off_the_curve_is_not_guessed():
    found = ablation(taken_apart({"clean": 0.1, "huge": 0.6}, **QUIET))
    assert found["factors"]["huge"]["alone"]["outcome"] == "NOT MEASURED"
    assert "beyond the ends of dense's curve" in found["factors"]["huge"]["alone"]["why"]
    assert found["factors"]["clean"]["alone"]["outcome"] == "SAVES"
    assert found["multiply"]["outcome"] == "NOT MEASURED"


def test_where_every_cell_is_off_the_curve_nothing_is_measured_and_the_rest_is_judged():
    found = ablation(taken_apart({"huge": 0.6, "vast": 0.6}, **QUIET))
    assert (found["n_seeds"], found["sd"], found["df"]) == (0, None, 0)
    assert {one["alone"]["outcome"] for one in found["factors"].values()} == {"NOT MEASURED"}
    assert found["multiply"]["outcome"] == "NOT MEASURED"


def test_an_unfinished_study_decides_nothing():
    synthetic = taken_apart(TWO, **QUIET)
    last = next(record for record in reversed(synthetic.records) if record.case.arm == "all")
    kept = tuple(record for record in synthetic.records if record is not last)
    found = judge_study(study_of(type(synthetic)(synthetic.world, synthetic.plan, kept)))["ablation"]["scales"]["s"]
    assert found["multiply"]["outcome"] == "NOT MEASURED"
    assert "not finished" in found["multiply"]["why"]


def test_one_seed_has_values_and_no_interval():
    found = ablation(taken_apart(TWO, **(QUIET | {"seeds": 1})))
    assert found["factors"]["moe"]["alone"]["saving"] == pytest.approx(0.2, abs=0.01)
    assert found["factors"]["moe"]["alone"]["bounds"] == [None, None]
    assert "one seed gives no interval" in found["multiply"]["why"]


def test_intervals_cover_through_the_real_path():
    """200 studies of two seeds: 95% intervals of four estimands; four standard errors of a binomial are .06."""
    truth = {"alone": 0.2, "average": 1 - 0.8 * math.exp(0.02), "departure": math.expm1(0.04)}
    covered = dict.fromkeys(truth, 0)
    studies = 200
    for draw in range(studies):
        found = ablation(taken_apart(TWO, pairs={("clean", "moe"): 0.04}, seeds=2, noise=0.02, draw=draw))
        moe, multiply = found["factors"]["moe"], found["multiply"]
        for name, (low, high) in {
            "alone": moe["alone"]["bounds"], "average": moe["average"]["bounds"],
            "departure": multiply["departure_bounds"],
        }.items():  # fmt: skip
            covered[name] += low <= truth[name] <= high
    assert all(count >= 0.89 * studies for count in covered.values()), covered


def test_the_report_shows_factors_pairs_and_the_answer(tmp_path):
    run = write(tmp_path, taken_apart(FOUR, generators=("D=ABC",), seeds=2, noise=0.02))
    (run / "verdict.json").write_text(json.dumps(judge(run)))
    text = render(compose(load(run)))
    assert "What each part of \u201call\u201d is worth" in text
    assert "Do savings multiply?" in text
    assert "a fraction 2^(4\u22121) with D=ABC" in text
    assert "ablation-pairs-table" in text
