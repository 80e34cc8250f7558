"""Steps instead of trainings: what the plan holds, when a budget comes to that, and what a sample measures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.budget import BudgetError, fit, parse_budget
from bench.case import Case
from bench.casefolder import Job
from bench.design import GateRule
from bench.estimate import Machine
from bench.plan import Plan, make_plan
from bench.suite import Suite, load_suite
from lmopt import cost

SUITES = Path(__file__).parents[2] / "suites"
SLOW = Machine(
    machine_class="two cores", memory_bytes=22 * 2**30, flops_per_s={"bf16": 6e11, "fp32": 1.5e11}, bytes_per_s=1.5e10
)
TEXT = """
suite: tiny
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms:
  - {name: moe, change: {ffn: {kind: moe, experts: 2, top_k: 1}}}
  - {name: fp32, role: timing, change: {precision: {kind: fp32}}}
over:
  scale: [{name: xs, layers: 1, width: 32, heads: 2, tokens: 10k, context: 32}]
  seed: [0]
layout: sample
sample: {steps: 4, warmup: 2}
"""


@pytest.fixture(scope="module")
def large() -> Suite:
    return load_suite(SUITES / "1b.yaml")


def trainings(plan: Plan) -> list[Case]:
    return [case for case in plan.cases if case.kind == "train"]


def test_an_hour_on_two_cores_leaves_steps_of_every_arm_and_says_so(large: Suite) -> None:
    cut, notes = fit(large, SLOW, parse_budget("60min"))
    plan = make_plan(cut, SLOW)
    assert cut.layout == "sample"
    assert {case.arm for case in trainings(plan)} == {arm.name for arm in large.all_arms()}
    assert all(case.purpose == "sample" for case in trainings(plan))
    assert not [case for case in plan.cases if case.kind in ("timing", "evaluate")]
    assert 1.35 * sum(case.estimate.time_s or 0 for case in trainings(plan)) <= 3600
    assert any("not measurable at this budget" in note for note in notes)
    assert all(case.fits for case in plan.cases), [case.reason for case in plan.cases if not case.fits]


def test_a_large_gpu_trains(large: Suite) -> None:
    gpu = Machine(machine_class="gpu", memory_bytes=80 * 2**30, flops_per_s={"bf16": 4e14, "fp32": 4e13})
    assert fit(large, gpu, parse_budget("2d")) == (large, [])


def test_steps_go_before_the_first_seed(large: Suite) -> None:
    few = make_plan(fit(large, SLOW, parse_budget("30min"))[0], SLOW)
    many = make_plan(fit(large, SLOW, parse_budget("120min"))[0], SLOW)
    assert sum(case.estimate.time_s or 0 for case in trainings(few)) < sum(
        case.estimate.time_s or 0 for case in trainings(many)
    )
    with pytest.raises(BudgetError, match="not even 3 steps"):
        fit(large, SLOW, parse_budget("1min"))


@pytest.mark.parametrize("name", ["paper", "paper-gpu", "inference"])
def test_a_study_that_is_cut_to_steps_lets_no_untrained_model_write(name: str, tmp_path: Path) -> None:
    suite = load_suite(SUITES / f"{name}.yaml")
    assert suite.inference is not None
    rule = GateRule(metric="decode_tokens_per_s", arm=suite.inference.arms[0].name, kind="noisy", floor=0.1)
    suite = suite.model_copy(update={"gate": (*suite.gate, rule)})
    planned = make_plan(suite.model_copy(update={"layout": "sample", "inference": None}), SLOW)
    flops = sum(case.estimate.train_flops or 0 for case in planned.cases)
    cut, notes = fit(suite, SLOW, parse_budget(f"{int(flops)} FLOP"))
    assert cut.layout == "sample"
    assert {case.kind for case in make_plan(cut, SLOW).cases} == {"prepare", "train"}
    assert any(note.startswith("ways of decoding are left out") for note in notes)
    (tmp_path / "resolved.yaml").write_text(cut.resolved_yaml())
    assert load_suite(tmp_path / "resolved.yaml") == cut


def test_the_large_suites_are_as_large_as_they_say() -> None:
    for name, parameters in (("1b", 1.03e9), ("500m", 0.5e9)):
        suite = load_suite(SUITES / f"{name}.yaml")
        for arm in suite.all_arms():
            held = cost.parameters(suite.resolve(arm.name, name))
            assert held.total == pytest.approx(parameters, rel=0.05)
            assert (held.active < 0.6 * held.total) == (arm.name in ("moe", "all"))


def test_another_seed_or_number_of_steps_is_another_case(tmp_path: Path) -> None:
    suite = tiny(tmp_path)
    more = suite.model_copy(update={"sample": suite.sample.model_copy(update={"steps": 5})})
    plans = [make_plan(one, SLOW) for one in (suite, more, suite.with_over(seed=(1,)))]
    ids = [{case.id for case in trainings(plan)} for plan in plans]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]


def tiny(folder: Path) -> Suite:
    draw = random.Random(0)
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    lines = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + "."}) for _ in range(200))
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "tiny.yaml").write_text(TEXT.replace("file:text.jsonl", f"file:{folder}/text.jsonl"))
    return load_suite(folder / "tiny.yaml")


def test_a_sample_measures_cost_and_says_why_it_has_no_quality(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from bench import measure

    plan = make_plan(tiny(tmp_path), SLOW)
    folders = {case.id: str(tmp_path / case.id) for case in plan.cases}
    found = {}
    for case in plan.cases:
        folder = Path(folders[case.id])
        folder.mkdir()
        job = Job(case=case, parents={parent: folders[parent] for parent in case.parents})
        if case.kind == "prepare":
            assert measure.prepare(job, folder).status == "ok"
        else:
            found[case.arm] = (folder, measure.train(job, folder))
    assert set(found) == {"dense", "moe", "fp32"}
    for folder, outcome in found.values():
        metrics = outcome.metrics
        assert outcome.detail["steps"] == len(outcome.detail["steps_s"]) == 4
        assert metrics["train_flops_per_token"].value
        assert metrics["step_time_s"].value
        assert metrics["peak_memory_bytes"].unit == "B"
        assert metrics["val_loss"].value is None
        assert "not measurable at this budget" in (metrics["val_loss"].reason or "")
        assert not list(folder.glob("**/*.safetensors"))


def test_the_report_shows_what_steps_cost_and_claims_nothing(tmp_path: Path) -> None:
    from bench import api
    from bench.record import CaseKey, Record, append, missing, reading

    plan = make_plan(tiny(tmp_path), SLOW)
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text(plan.to_json())
    (run / "suite.yaml").write_text((tmp_path / "tiny.yaml").read_text())
    for case in plan.cases:
        slower = 2.0 if case.arm == "fp32" else 1.0
        metrics = {
            "train_flops": reading(5e8, "FLOP", "counted"),
            "train_flops_per_token": reading(1e6, "FLOP/token", "counted"),
            "peak_memory_bytes": reading(2**30, "B", "counted", "host"),
            "val_loss": missing("nat/token", "not measurable at this budget: 4 steps are no training"),
        }
        steps = {"tokens": 512, "steps": 4, "steps_s": [slower, slower, slower, 3 * slower],
                 "predicted_memory_bytes": 1.1 * 2**30}  # fmt: skip
        key = CaseKey(id=case.id, kind=case.kind, arm=case.arm, scale=case.scale, seed=case.seed, horizon=case.horizon)
        is_train = case.kind == "train"
        append(
            run / "records.jsonl",
            Record(status="ok", case=key, metrics=metrics if is_train else {}, detail=steps if is_train else {}),
        )
    verdict = api.judge(run)
    moe = verdict["arms"]["moe"]
    assert moe["outcome"] == "NOT MEASURED"
    assert "not measurable at this budget: a few steps of every arm are no training" in moe["why"]
    assert moe["next"].startswith("train the arms")
    from bench.report.page import compose
    from bench.report.runfolder import load

    page = compose(load(run))
    section = next(one for one in page.sections if one.id == "sample")
    table = section.blocks[-1]
    fp32 = next(row for row in table.rows if row.cells[0].text == "fp32")
    assert fp32.cells[5].small == "2.00\u202f×"
    assert "planned" in fp32.cells[7].small
    assert "+10" in fp32.cells[7].small
