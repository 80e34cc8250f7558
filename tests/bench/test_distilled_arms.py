"""Arms that learn from another arm: what is wrong with them, what they wait and pay for, and a run of some."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import ledger, workloads
from bench.api import run
from bench.estimate import Machine
from bench.forecast import render
from bench.plan import make_plan
from bench.record import read
from bench.study import load as load_study
from bench.suite import check, load_suite
from lmopt import cost
from lmopt.arch import transformer
from lmopt.train import checkpoint
from tests.bench import checkpoints
from tests.bench.small_suite import ROOT, written

MACHINE = Machine(machine_class="test")
SUITE = """\
suite: distilled
purpose: selftest
data:
  corpus: ["stdlib:"]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: small, recipe: {batching: {sequences: 4, length: 32}}}
arms:
  - {name: large, role: control, change: {model: {layers: 4}}}
  - {name: timed, role: timing, change: {precision: {kind: fp32}}}
  - {name: taught, change: {objective: {kind: distillation, teacher: large}}}
  - name: begun
    timed: false
    change: {objective: {kind: distillation, teacher: large}, start: {kind: teacher_layers}}
over:
  scale:
    - {name: xs, layers: 2, width: 32, heads: 2, tokens: 6k, context: 32}
    - {name: s, layers: 2, width: 64, heads: 2, tokens: 6k, context: 32}
  seed: [0, 1]
  horizon: [0.5, 1.0]
"""
TUNE = "tune: {lr: [1e-3, 1e-2], share: 0.5, seed: [7, 8]}"
TAUGHT = "{objective: {kind: distillation, teacher: large}}}"


def edited(*changes: tuple[str, str]) -> str:
    text = SUITE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_sound_one_is_sound_and_resolves_to_itself(tmp_path: Path) -> None:
    path = written(tmp_path, SUITE)
    assert check(path) == []
    suite = load_suite(path)
    resolved = suite.resolved_yaml()
    assert "shape" not in resolved, "it follows from the teacher"
    assert load_suite(written(tmp_path, resolved)) == suite
    assert suite.describe_change("taught") == "objective: next_token -> distillation (teacher large)"


def test_the_example_of_the_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "techniques" / "distillation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml distill\n(.*?)```", page, re.DOTALL)
    arms = SUITE[SUITE.index("arms:") : SUITE.index("over:")]
    path = written(tmp_path, edited((arms, example)))
    assert check(path) == []
    assert [arm.name for arm in load_suite(path).arms] == ["large", "distilled", "begun"]


@pytest.mark.parametrize(
    ("change", "message", "line"),
    [
        ((TAUGHT, TAUGHT.replace("large", "larg")), "no arm is named 'larg'", 11),
        ((TAUGHT, TAUGHT.replace("large", "timed")), "`timed` is a timing arm", 11),
        ((TAUGHT, TAUGHT.replace("large", "begun")), "`taught` learns from `begun`, which must stand before it", 11),
        ((TAUGHT, TAUGHT.replace("large", "taught")), "`taught` learns from `taught`, which must stand before it", 11),
        ((TAUGHT, TAUGHT.replace(", teacher: large", "")), "missing key `teacher`", 11),
        (("{model: {layers: 4}}", "{model: {layers: 4, width: 96}}"), "objective.hidden (0.125) aligns states", 11),
        (("{model: {layers: 4}}", "{model: {layers: 1}}"), "2: deeper than its teacher, which has 1", 14),
        (("{model: {layers: 4}}", "{model: {layers: 4, qk_norm: true}}"), "model.qk_norm is False, the teacher's", 14),
        (("{model: {layers: 4}}", "{model: {layers: 4, context: 64, vocab: 301}}"), "knows 301 tokens", 11),
    ],
)
def test_a_mistake_is_shown_at_its_line(tmp_path: Path, change: tuple[str, str], message: str, line: int) -> None:
    problems = check(written(tmp_path, edited(change)))
    assert line in [problem.line for problem in problems if message in problem.message], problems


def test_a_student_waits_for_its_teacher_of_the_same_seed_and_scale(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, SUITE))
    plan = make_plan(suite, MACHINE)
    place = {case.id: number for number, case in enumerate(plan.cases)}
    trained = {(case.arm, case.scale, case.seed, case.horizon): case for case in plan.cases if case.kind == "train"}
    for arm in ("taught", "begun"):
        for scale in ("xs", "s"):
            for seed in (0, 1):
                student, teacher = trained[arm, scale, seed, 1.0], trained["large", scale, seed, 1.0]
                assert student.parents[1] == teacher.id
                assert all(place[parent] < place[student.id] for parent in student.parents)
                assert student.recipe is not None
                assert student.recipe.teacher is not None
                assert teacher.recipe is not None
                assert student.recipe.teacher.model == teacher.recipe.model, "at every scale its own"
    small, student = trained["small", "s", 0, 1.0], trained["taught", "s", 0, 1.0]
    assert (student.estimate.train_flops or 0) > (small.estimate.train_flops or 0)
    assert (student.estimate.peak_memory_bytes or 0) > (small.estimate.peak_memory_bytes or 0)


def test_another_teacher_makes_another_student(tmp_path: Path) -> None:
    ids = []
    for change in ((), (("{model: {layers: 4}}", "{model: {layers: 4}, optimizer: {lr: 1e-4}}"),)):
        plan = make_plan(load_suite(written(tmp_path, edited(*change))), MACHINE)
        ids.append({case.arm: case.id for case in plan.cases if case.kind == "train" and case.horizon == 1.0})
    assert ids[0]["taught"] != ids[1]["taught"]
    assert ids[0]["small"] == ids[1]["small"]


def test_trials_of_a_student_learn_from_a_tuned_teacher_of_their_own_seed(tmp_path: Path) -> None:
    study = load_suite(written(tmp_path, edited(("over:", f"{TUNE}\nover:"))))
    plan = make_plan(study, MACHINE)
    cases, place = ({case.id: case for case in plan.cases}, {case.id: number for number, case in enumerate(plan.cases)})
    for case in plan.cases:
        assert all(place[parent] < place[case.id] for parent in case.parents), case.label
    sources = [case for case in plan.cases if case.purpose == "trial_source"]
    assert [(case.arm, case.scale, case.seed, case.horizon) for case in sources] == [
        ("large", scale, seed, 1.0) for scale in ("xs", "s") for seed in (7, 8)
    ], "one, whoever learns from it"
    for trial in (case for case in plan.cases if case.purpose == "tune"):
        begun = [cases[parent] for parent in trial.parents if cases[parent].purpose == "trial_source"]
        wanted = [("large", trial.scale, trial.seed)] if trial.arm in ("taught", "begun") else []
        assert [(case.arm, case.scale, case.seed) for case in begun] == wanted
        assert [trial.parents[1]] == [case.id for case in begun] or not begun, "where a training looks for it"
    for source in sources:
        tried = [cases[parent] for parent in source.parents if cases[parent].purpose == "tune"]
        assert {(case.arm, case.spec["trial"]["lr"], case.seed) for case in tried} == {
            ("large", lr, seed) for lr in (1e-3, 1e-2) for seed in (7, 8)
        }
    spent = sum(case.estimate.train_flops or 0 for case in plan.cases if case.purpose in ("tune", "trial_source"))
    assert f"({spent:.3g} of them in 32 trials and 4 sources)" in render(plan)


def test_a_teacher_may_be_a_tuned_student_too(tmp_path: Path) -> None:
    chain = "  - {name: last, change: {objective: {kind: distillation, teacher: taught, hidden: 0}}}\nover:"
    plan = make_plan(load_suite(written(tmp_path, edited(("over:", f"{chain[:-5]}{TUNE}\nover:")))), MACHINE)
    cases, place = ({case.id: case for case in plan.cases}, {case.id: number for number, case in enumerate(plan.cases)})
    assert all(place[parent] < place[case.id] for case in plan.cases for parent in case.parents)
    (trial, *_) = [case for case in plan.cases if case.purpose == "tune" and case.arm == "last"]
    source = cases[trial.parents[1]]
    assert (source.arm, source.seed) == ("taught", trial.seed)
    assert (cases[source.parents[1]].arm, cases[source.parents[1]].seed) == ("large", trial.seed)


def test_a_claim_whose_teacher_costs_all_it_may_is_named(tmp_path: Path) -> None:
    dear = edited(("{name: taught,", "{name: taught, role: claim,"))
    plan = make_plan(load_suite(written(tmp_path, dear)), MACHINE)
    assert [note.split(":")[0] for note in plan.notes] == [
        "claim taught/xs cannot hold", "claim taught/s cannot hold"
    ]  # fmt: skip
    cheap = dear.replace("{model: {layers: 4}}", "{model: {layers: 2}, tokens: 600}")
    assert make_plan(load_suite(written(tmp_path, cheap)), MACHINE).notes == ()


def test_a_claim_pays_for_its_teacher(tmp_path: Path) -> None:
    text = edited(("{name: taught,", "{name: taught, role: claim,"), ("{model: {layers: 4}}", "{tokens: 60k}"))
    text = text.replace("tokens: 6k", "tokens: 600k")
    suite = load_suite(written(tmp_path, text.replace("start: {kind: teacher_layers}", "schedule: {warmup: 0.1}")))
    point = make_plan(suite, MACHINE).design.claim_points["taught"]["xs"]
    student, reference, teacher = (suite.resolve(arm, "xs") for arm in ("taught", "small", "large"))
    spent = cost.training_flops(student, point) + cost.training_flops(teacher, 1.0)
    allowed = 0.8 * cost.training_flops(reference, 1.0)
    assert spent <= allowed < spent + 2 * cost.training_flops(student, 1.0) / student.steps(1.0)


def test_an_interrupted_student_goes_on_with_its_own_teacher_to_the_same_bits(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, SUITE))
    student, large = suite.resolve("taught", "xs"), suite.resolve("large", "xs")
    for name, seed in (("teacher", 7), ("other", 8)):
        checkpoint.save_model(transformer.build(large, seed=seed), large, tmp_path / name)
    horizon = 8 * student.batching.tokens / student.tokens

    def batches(start: int = 0) -> Iterator[Tensor]:
        for number in range(start, 8):
            yield torch.randint(300, (4, 33), generator=torch.Generator().manual_seed(number))

    def trained(teacher: str) -> list[float | None]:
        state = workloads.start(student, seed=0, horizon=horizon, teacher=tmp_path / teacher)
        return [step.loss for step in workloads.train(state, batches())]

    stopped = workloads.start(student, seed=0, horizon=horizon, teacher=tmp_path / "teacher")
    steps = workloads.train(stopped, batches())
    first = [next(steps).loss for _ in range(3)]
    workloads.save(stopped, tmp_path / "checkpoint")
    again = workloads.resume(tmp_path / "checkpoint", student, tmp_path / "teacher")
    assert again is not None
    rest = [step.loss for step in workloads.train(again, batches(again.pace.portions))]
    assert first + rest == trained("teacher") != trained("other")


@pytest.mark.slow
def test_students_train_count_alike_and_are_charged_for_their_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write_text(tmp_path)
    scales = SUITE[SUITE.index("    - {name: s,") : SUITE.index("  seed:")]
    text = edited(
        ('["stdlib:"]', '["file:text.jsonl"]'), (scales, ""), ("seed: [0, 1]", "seed: [0]"),
        ("over:", "tune: {lr: [1e-3, 4e-3], share: 0.5}\nover:"),
    )  # fmt: skip
    path = written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    run(path, out=tmp_path / "run")

    records = read(tmp_path / "run" / "records.jsonl")
    assert [record.reason for record in records if record.status != "ok"] == []
    trained = {(r.case.arm, r.case.horizon): r for r in records if r.case.kind == "train" and not r.is_trial}
    for record in trained.values():
        assert record.detail["counts"]["agree"], record.detail["counts"]["disagreement"]
    first = {arm: trained[arm, 1.0].detail["curve"][0]["loss"] for arm in ("small", "taught", "begun")}
    assert first["taught"] == first["small"], "the same initialisation and text"
    assert first["begun"] < first["small"] - 0.5, "layers of a trained teacher"

    study = load_study(tmp_path / "run")
    for arm in ("taught", "begun"):
        (charge,) = ledger.charges(study, arm, "small", "xs")
        assert charge.costs["flops"].value == trained["large", 1.0].value("train_flops")
    (source,) = [r for r in records if r.is_trial and not r.detail["trial"]]
    assert (source.case.arm, source.case.horizon, source.case.seed) == ("large", 1.0, 1_000_000)
    assert source.detail["tuning"]["chosen"] == trained["large", 1.0].detail["tuning"]["chosen"]
    tuned = json.loads((tmp_path / "run" / "verdict.json").read_text())["tuning"]["xs"]
    assert tuned["equal"], tuned["why"]
    own = sum(r.value("train_flops") or 0 for r in records if r.is_trial and r.case.arm == "taught")
    assert tuned["arms"]["taught"]["cost"]["flops"] == own + (source.value("train_flops") or 0)
    assert study.trainings("large", "xs", 1_000_000) == []
    assert source.case.id not in study.needed("taught", "xs")
    judged = json.loads((tmp_path / "run" / "verdict.json").read_text())["arms"]["taught"]["scales"]["xs"]
    saved = judged["endpoints"]["flops"]
    if saved["saving_training"] is not None:
        assert saved["saving_all_in"] < saved["saving_training"]
