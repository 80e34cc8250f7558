"""Controls that the harness makes: which, what they are, what they may do to a claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.controls import shrunk, spent_share
from bench.plan import Machine, make_plan
from bench.suite import check, load_suite
from bench.verdict import judge_study
from lmopt import cost
from lmopt.recipe import Recipe
from tests.bench.small_suite import ROOT, edited, loaded, written
from tests.bench.synthetic import Planted, study_of, synthesize

CONFIRM = ("about: A test.", "about: A test.\npurpose: confirm")
CLAIM = Planted("all", role="claim", saving=0.3, flops_ratio=1.02)
SMALLER = Planted("smaller", role="control", flops_ratio=0.8)
TWIN = Planted("aa", role="control")


def controlled(text: str) -> tuple[str, str]:
    return ("gate:", f"controls: {text}\ngate:")


# --- made ----------------------------------------------------------------------------------------


def test_a_confirming_suite_gets_both_and_loads_back_equal(tmp_path: Path) -> None:
    suite = loaded(tmp_path, CONFIRM)
    assert [(arm.name, arm.role, arm.timed) for arm in suite.arms[3:]] == [
        ("smaller", "control", False), ("aa", "control", False),
    ]  # fmt: skip
    assert suite.design().controls == {"truncated": "dense", "half": "dense", "smaller": "smaller", "aa": "aa"}
    again = load_suite(written(tmp_path, suite.resolved_yaml()))
    assert again == suite
    assert suite.describe_change("aa") == "model.init_stream: 0 -> 1"


def test_the_smaller_model_spends_at_most_what_a_claim_may_at_every_scale(tmp_path: Path) -> None:
    suite = loaded(tmp_path, CONFIRM)
    for scale in ("s", "m"):
        share = spent_share(suite.resolve("dense", scale), suite.resolve("smaller", scale))
        assert 0.78 < share <= 0.8
    words = suite.describe_change("smaller")
    assert words.startswith("ffn.hidden: default -> ")
    assert "of the training FLOPs of dense (a claim may spend 0.8 of them)" in words
    cut = suite.with_over(scale=suite.over.scale[:1])
    assert check(written(tmp_path, cut.resolved_yaml())) == []


def test_an_exploring_suite_gets_none_unless_it_says_so(tmp_path: Path) -> None:
    assert len(loaded(tmp_path).arms) == 3
    asked = loaded(tmp_path, controlled("{aa: true}"))
    assert (asked.controls.smaller, asked.controls.aa) == (None, "aa")
    refused = loaded(tmp_path, CONFIRM, controlled("{smaller: false, aa: false}"))
    assert len(refused.arms) == 3
    assert set(refused.design().controls) == {"truncated", "half"}


def test_names_and_streams_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    moe = ("name: moe\n    role: component\n    change: {ffn: {kind: moe, experts: 8, top_k: 2}}",
           "name: smaller\n    change: {model: {init_stream: 1}, ffn: {hidden: 64}}")  # fmt: skip
    suite = loaded(tmp_path, CONFIRM, moe, ("arm: moe", "arm: smaller"))
    assert suite.controls.smaller == "smaller-2"
    assert suite.arm("aa").change == {"model": {"init_stream": 2}}


def test_a_declared_twin_is_taken_and_not_made_again(tmp_path: Path) -> None:
    moe = ("name: moe\n    role: component\n    change: {ffn: {kind: moe, experts: 8, top_k: 2}}",
           "name: placebo\n    role: control\n    change: {model: {init_stream: 7}}")  # fmt: skip
    suite = loaded(tmp_path, CONFIRM, moe, ("arm: moe", "arm: placebo"))
    assert suite.controls.aa == "placebo"
    assert [arm.name for arm in suite.arms] == ["placebo", "fp32", "all", "smaller"]


def test_the_ids_of_an_exploring_study_stay() -> None:
    suite = load_suite(ROOT / "suites" / "quickstart.yaml")
    off = suite.model_copy(update={"controls": suite.controls.model_copy(update={"smaller": False, "aa": False})})
    plans = [make_plan(one, Machine(machine_class="test")) for one in (suite, off)]
    assert [case.id for case in plans[0].cases] == [case.id for case in plans[1].cases]
    assert {case.arm for case in plans[0].cases} == {arm.name for arm in suite.all_arms()}


@pytest.mark.parametrize(
    ("model", "share"),
    [
        ({"layers": 2, "width": 64, "heads": 2}, 0.8),
        ({"layers": 2, "width": 64, "heads": 1}, 0.4),
        ({"layers": 2, "width": 256, "heads": 8, "kv_heads": 2}, 0.5),
        ({"layers": 12, "width": 768, "heads": 12}, 0.7),
    ],
)
def test_a_shape_is_legal_within_the_budget_and_uses_it(model: dict[str, int], share: float) -> None:
    recipe = Recipe.model_validate({"model": model | {"vocab": 4096}, "tokens": 10_000_000})
    full = cost.training_flops(recipe, 1.0)
    shape = shrunk(recipe, share * full)
    assert shape is not None
    small = Recipe.model_validate(
        {"model": recipe.model.model_dump() | {key: shape[key] for key in shape if key != "hidden"},
         "ffn": {"hidden": shape["hidden"]}, "tokens": recipe.tokens}
    )  # fmt: skip
    assert 0.93 * share < cost.training_flops(small, 1.0) / full <= share
    assert small.model.heads // small.model.key_heads == recipe.model.heads // recipe.model.key_heads


def test_no_shape_is_none_and_said_at_its_place(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"model": {"layers": 1, "width": 2, "heads": 1, "vocab": 512}, "tokens": 10**7})
    assert shrunk(recipe, 1.0) is None
    text = edited(CONFIRM, controlled("{aa: false}"))
    text = text.replace("gate:", "hypothesis: {saving: {at_least: 0.99, target: 0.99}}\ngate:")
    (problem,) = check(written(tmp_path, text))
    assert "no smaller model can be made of the baseline at scale `s`" in problem.message
    assert "controls: {smaller: NAME}" in (problem.hint or "")


@pytest.mark.parametrize(
    ("edit", "message", "hint"),
    [
        (controlled("{aa: 3}"), "expected the name of an arm, true or false, got 3", "`true` has the arm made"),
        (controlled("{smaller: [moe]}"), "got ['moe']", "`true` has the arm made"),
        (("role: component\n", "role: component\n    at: {x: {hidden: 64}}\n"), "no scale is named 'x'", None),
        (("role: component\n", "role: component\n    at: {s: {heads: 3}}\n"), "heads (3) must divide width", None),
        (("role: component\n", "role: component\n    at: {s: {lr: 1}}\n"), "lr", None),
    ],
)
def test_bad_values_have_a_place(edit: tuple[str, str], message: str, hint: str | None, tmp_path: Path) -> None:
    problems = check(written(tmp_path, edited(edit)))
    assert problems
    assert message in problems[0].message
    assert problems[0].line > 1
    assert hint is None or hint in (problems[0].hint or "")


# --- judged --------------------------------------------------------------------------------------


def verdict_of(*arms: Planted, **world: object) -> dict:
    settings = {"seeds": 5, "noise": 0.004, "items": 6000, "seed_accuracy_sd": 0.0} | world
    return judge_study(study_of(synthesize(arms=arms, **settings)))["arms"]


def condition(arm: dict) -> dict:
    return next(one for one in arm["scales"]["s"]["conditions"] if one["name"] == "smaller_control")


def test_a_claim_that_beats_the_smaller_model_is_confirmed_with_all_controls() -> None:
    arms = verdict_of(CLAIM, SMALLER, TWIN, purpose="confirm", tuned=True)
    assert arms["all"]["outcome"] == "SUPPORTED", arms["all"]["why"]
    assert condition(arms["all"])["met"] is True
    assert "does worse than all at its claim point" in arms["smaller"]["why"]
    assert "two equal models end 0.00" in arms["aa"]["why"]


@pytest.mark.parametrize(("saving", "words"), [(0.3, "does as well as all"), (0.5, "does better than all")])
def test_a_claim_that_a_smaller_model_matches_is_not_supported(saving: float, words: str) -> None:
    arms = verdict_of(CLAIM, replace(SMALLER, saving=saving), TWIN, purpose="confirm", tuned=True)
    assert condition(arms["all"])["met"] is False
    assert arms["all"]["outcome"] == "INCONCLUSIVE"
    assert "smaller dense model of the same FLOPs a token" in arms["all"]["why"]
    assert words in arms["smaller"]["why"]


@pytest.mark.parametrize(("saving", "outcome"), [(0.3, "SUPPORTED"), (0.05, "REFUTED")])
@pytest.mark.parametrize(("there", "lacking"), [((SMALLER,), "aa"), ((TWIN,), "smaller")])
def test_a_confirming_study_without_one_of_them_decides_nothing(
    saving: float, outcome: str, there: tuple[Planted, ...], lacking: str
) -> None:
    claim = replace(CLAIM, saving=saving)
    why = verdict_of(claim, *there, purpose="confirm", tuned=True)["all"]["why"]
    assert why.startswith(f"would be {outcome} if the {lacking} control had been run;")


@pytest.mark.parametrize(
    ("hidden", "words"), [(64, None), (16, "and a smaller model is held against a claim at 80.0%")]
)
def test_a_named_smaller_model_must_spend_what_a_claim_may(tmp_path: Path, hidden: int, words: str | None) -> None:
    """A strawman would make any claim look good."""
    made = loaded(tmp_path, CONFIRM)
    shapes = {scale: dict(shape.values()) for scale, shape in made.arm("smaller").at.items()}
    shapes["s"]["hidden"] = shapes["s"]["hidden"] if words is None else hidden
    declared = "\n".join(f"      {scale}: {json.dumps(shape)}" for scale, shape in shapes.items())
    arm = f"  - name: small\n    role: control\n    timed: false\n    at:\n{declared}\nover:"
    text = edited(CONFIRM, controlled("{smaller: small}")).replace("over:", arm, 1)
    problems = check(written(tmp_path, text))
    assert [words in problem.message for problem in problems if words] == ([] if words is None else [True])
    assert words is not None or problems == []
