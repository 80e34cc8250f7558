"""What a plan can show: published sample sizes, stored noise, and sentences for each kind of arm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scipy import stats

from bench.plan import Machine, make_plan
from bench.prospect import DEFAULT, Noise, describe, render, stored_noise
from bench.stats.power import items_for_margin, room
from bench.suite import load_suite
from tests.bench.small_suite import ROOT, loaded

MACHINE = Machine(machine_class="test")


def test_the_prospects_of_a_claim_components_and_tasks(tmp_path: Path) -> None:
    text = render(make_plan(loaded(tmp_path), MACHINE), {"s": Noise(0.05, "measured in results/small/x")})
    assert "noise at s: SD 5.0% of a seed's cost ratio (measured in results/small/x)" in text
    assert f"noise at m: SD 12.0% of a seed's cost ratio ({DEFAULT.origin})" in text
    assert "claim all, true saving 30% against 20%: power" in text
    least = room(0.05 / math.sqrt(2), 1, 0.025)
    assert f"1 component (moe): savings from {100 * -math.expm1(-least):.0f}% or costs from" in text
    needed = ", ".join(f"{items_for_margin(0.01, share, 0.025):,}" for share in (0.1, 0.2, 0.3))
    assert f"{needed} items are needed; those compared here (qa 2,871)" in text


def test_several_claims_share_alpha(tmp_path: Path) -> None:
    """A claim is read off its bound after Holm, so what a plan promises of two must not be that of one."""
    edits = ("name: moe\n    role: component", "name: moe\n    role: claim"), ("seed: [0, 1]", "seed: [0, 1, 2, 3, 4]")
    plan = make_plan(loaded(tmp_path, *edits), MACHINE)
    found = describe(plan, {"s": Noise(0.12, "measured")})
    assert found["alpha_of_claims"] == pytest.approx(0.0125)
    claim = found["scales"]["s"]["arms"]["all"]
    critical, distance = stats.t.ppf(1 - 0.0125, 8), math.log(0.8 / 0.7) / (0.12 / math.sqrt(5))
    assert claim["power_at_target"] == pytest.approx(stats.nct.sf(critical, 8, distance), abs=1e-6)
    assert claim["seeds_needed"] == 10
    assert found["accuracy"]["items_needed"]["0.2"] == items_for_margin(0.01, 0.2, 0.0125)
    assert "each of 2 claims, and its accuracy, at 0.0125" in "".join(found["text"])
    assert "margin 1 point, if" in "".join(found["text"])


def test_one_seed_can_show_nothing(tmp_path: Path) -> None:
    text = render(make_plan(loaded(tmp_path, ("seed: [0, 1]", "seed: [0]")), MACHINE), {})
    assert text.count("one seed gives no interval") == 4


def test_where_arms_are_only_timed_no_noise_is_claimed(tmp_path: Path) -> None:
    text = render(make_plan(load_suite(ROOT / "suites" / "numa.yaml"), MACHINE), {})
    assert "nothing on savings" in text
    assert "noise:" not in text


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (("horizon: [0.5, 1.0]", "horizon: [1.0]\ncontrols: {truncated: false, half: false}"), "to one horizon"),
        (("over:", "layout: sample\nover:"), "a few steps of every arm"),
    ],
)
def test_a_design_that_shows_no_saving_promises_none(edit: tuple[str, str], why: str, tmp_path: Path) -> None:
    plan = make_plan(loaded(tmp_path, edit), MACHINE)
    text = render(plan, {})
    assert "nothing on savings: " in text
    assert why in text
    assert "power" not in text.split("\n", 1)[1]
    found = describe(plan, {})["scales"]["s"]["arms"]["all"]
    assert found["saves_from"] is found["power_at_target"] is found["seeds_needed"] is None


def test_controls_make_a_curve_of_one_horizon(tmp_path: Path) -> None:
    text = render(make_plan(loaded(tmp_path, ("horizon: [0.5, 1.0]", "horizon: [1.0]")), MACHINE), {})
    assert "claim all, true saving 30% against 20%: power" in text


def test_an_ablation_says_what_its_table_shows(tmp_path: Path) -> None:
    suite = loaded(
        tmp_path, ("over:", "ablation: {of: all, design: [factorial]}\nover:"), ("seed: [0, 1]", "seed: [0, 1, 2]")
    )
    text = render(make_plan(suite, MACHINE), {})
    assert "ablation of all, 2 factors, 4 cells: a factor alone or in the whole saves from" in text
    assert "a pair departs from multiplying from" in text
    assert "the whole departs from the product of single savings from" in text


def verdict(folder: Path, sd: float, n: int) -> None:
    folder.mkdir(parents=True)
    arms = {name: {"scales": {"s": {"endpoints": {"flops": {"sd": sd, "n_seeds": n}}}}} for name in ("moe", "all")}
    (folder / "verdict.json").write_text(json.dumps({"arms": arms | {"fp32": {"scales": {"s": {"endpoints": {}}}}}}))


def test_a_stored_run_of_the_same_suite_gives_the_noise(tmp_path: Path) -> None:
    verdict(tmp_path / "small" / "0123", 0.03, 3)
    verdict(tmp_path / "other" / "0123", 0.9, 3)
    found = stored_noise("small", tmp_path)
    assert found["s"].sd == pytest.approx(0.03)
    assert "2 arms, 4 degrees of freedom" in found["s"].origin
    assert stored_noise("none", tmp_path) == {}


def test_a_published_run_counts_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    verdict(tmp_path / "reference" / "small", 0.02, 2)
    (tmp_path / "small" / "broken").mkdir(parents=True)
    (tmp_path / "small" / "broken" / "verdict.json").write_text("{")
    assert stored_noise("small", tmp_path)["s"].sd == pytest.approx(0.02)


def test_the_prospects_as_plain_data_say_what_the_words_say(tmp_path: Path) -> None:
    plan = make_plan(loaded(tmp_path, ("seed: [0, 1]", "seed: [0, 1, 2]")), MACHINE)
    noise = {"s": Noise(0.05, "measured")}
    found = describe(plan, noise)
    json.dumps(found, allow_nan=False)
    assert found["text"] == render(plan, noise).split("\n")
    claim = found["scales"]["s"]["arms"]["all"]
    assert f"power {100 * claim['power_at_target']:.0f}% with 3 seeds, {claim['seeds_needed']} seeds" in "".join(
        found["text"]
    )
    moe = found["scales"]["s"]["arms"]["moe"]
    assert f"savings from {100 * moe['saves_from']:.0f}% or costs from {100 * moe['costs_from']:.0f}%" in "".join(
        found["text"]
    )
    assert found["accuracy"]["items_needed"]["0.2"] == items_for_margin(0.01, 0.2, 0.025)
    single = describe(make_plan(loaded(tmp_path, ("seed: [0, 1]", "seed: [0]")), MACHINE), {})
    assert single["scales"]["s"]["arms"]["all"]["power_at_target"] is None


def test_a_relative_margin_is_planned_for_accuracies_that_a_reference_may_have(tmp_path: Path) -> None:
    relative = "hypothesis: {accuracy_drop: {less_than: 0.02, kind: relative}}\ngate:"
    text = render(make_plan(loaded(tmp_path, ("gate:", relative)), MACHINE), {})
    needed = ", ".join(f"{items_for_margin(0.02 * accuracy, 0.2, 0.025):,}" for accuracy in (0.5, 0.7, 0.9))
    assert "margin 2.0% of the reference's: 1, 1.4, 1.8 points where that is 50%, 70%, 90%" in text
    assert f"{needed} items are needed" in text
