"""Fine-tuning as planned, as judged and as a child does it: equal budgets, the best rate, tested on its own items."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import api, finetune, finetuneparity
from bench.budget import fit, parse_budget
from bench.estimate import Machine
from bench.finetune import Trial, best
from bench.noninferiority import compare
from bench.plan import make_plan, run_hash
from bench.record import CaseKey, Record, missing, reading
from bench.report import build
from bench.verdict import judge_study
from tests.bench.small_suite import loaded
from tests.bench.synthetic import Synthetic, study_of, synthesize, write

MACHINE = Machine(machine_class="test", memory_bytes=8 * 2**30, flops_per_s={"fp32": 1e11, "bf16": 2e11})
STANZA = """\
finetune:
  - {task: vitaminc, tokens: 200k, sequences: 4}
  - {task: squad_dev, learn: [squad_nyt, squad_wikipedia], tokens: 200k, sequences: 4, lr: [1e-3, 3e-3, 1e-2]}
evaluate:"""


def test_every_evaluated_model_is_fine_tuned_alike(tmp_path: Path) -> None:
    plan = make_plan(loaded(tmp_path, ("evaluate:", STANZA)), MACHINE)
    cases = {case.id: case for case in plan.cases}
    tuned = [case for case in plan.cases if case.kind == "finetune"]
    evaluated = [case for case in plan.cases if case.kind == "evaluate"]
    assert len(tuned) == 2 * len(evaluated)
    place = {case.id: number for number, case in enumerate(plan.cases)}
    for case in tuned:
        train = cases[case.parents[0]]
        assert (train.kind, train.arm, train.scale, train.seed, train.horizon) == (
            "train", case.arm, case.scale, case.seed, case.horizon)  # fmt: skip
        assert all(place[parent] < place[case.id] for parent in case.parents)
        assert case.recipe is not None
        assert case.recipe.trained_tokens(1.0) == pytest.approx(200_000, rel=0.01)
        assert case.estimate.train_flops
        assert case.estimate.time_s
    assert {case.arm for case in tuned} == {"dense", "all"}, "a component is not evaluated, so it is not fine-tuned"
    assert {json.dumps(case.spec) for case in tuned if case.spec["task"] == "squad_dev"} == {
        json.dumps({"task": "squad_dev", "learn": ["squad_nyt", "squad_wikipedia"], "test_share": 1.0, "limit": None,
                    "rates": [1e-3, 3e-3, 1e-2]})}  # fmt: skip
    assert {case.spec["test_share"] for case in tuned if case.spec["task"] == "vitaminc"} == {0.5}
    corpus = next(case for case in plan.cases if case.purpose == "corpus")
    assert corpus.spec["protect"] == ["quartz", "vitaminc", "squad_dev"]


def test_a_study_without_fine_tuning_keeps_its_folder(tmp_path: Path) -> None:
    plain = loaded(tmp_path)
    assert run_hash(plain, "m") == run_hash(plain.model_copy(update={"finetune": ()}), "m")
    assert run_hash(plain, "m") != run_hash(loaded(tmp_path, ("evaluate:", STANZA)), "m")


def test_a_budget_in_tokens_counts_every_trial(tmp_path: Path) -> None:
    suite = loaded(tmp_path, ("evaluate:", STANZA))
    tokens = sum(len(case.spec["rates"]) * case.recipe.trained_tokens(1.0) if case.recipe else 0
                 for case in make_plan(suite, MACHINE).cases if case.kind == "finetune")  # fmt: skip
    trained = sum(case.recipe.trained_tokens(case.horizon or 0) if case.recipe else 0
                  for case in make_plan(suite, MACHINE).cases if case.kind == "train")  # fmt: skip
    assert tokens > 0
    assert fit(suite, MACHINE, parse_budget(f"{tokens + trained} tokens"))[1] == []
    assert fit(suite, MACHINE, parse_budget(f"{tokens + trained - 1} tokens"))[1] != []


def trial(lr: float, accuracy: float | None, nats: float | None = 1.0) -> Trial:
    return Trial(lr, accuracy, None if accuracy is None else nats, 0.5, 1000, 10, 1.0,
                 missing("J", "no sensor").model_dump(), 10.0)  # fmt: skip


def test_the_most_accurate_rate_is_tested_of_equal_ones_the_surest_and_none_that_diverged() -> None:
    assert best([trial(1e-3, 0.4), trial(3e-3, 0.6), trial(1e-2, None)]) == 1
    assert best([trial(1e-3, 0.5, 0.9), trial(3e-3, 0.5, 0.7)]) == 1
    assert best([trial(1e-3, 0.5, 0.7), trial(3e-3, 0.5, 0.7)]) == 0
    assert best([trial(1e-3, None), trial(3e-3, None)]) is None


def test_a_history_counts_processes_and_keeps_finished_trials(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "trials.json"
    first = finetune.History.begin(path)
    first.trials.append(trial(1e-3, 0.5))
    first.save()
    again = finetune.History.begin(path)
    assert (again.segments, again.trials) == (2, [trial(1e-3, 0.5)])


# --- judging -------------------------------------------------------------------------------------


def with_finetuning(synthetic: Synthetic, *, failed: bool = False, tokens: int = 1000, drop: str = "") -> Synthetic:
    """Every evaluation joined by a fine-tuned one on the same model, of another task, with its own items."""
    planned = [dict(case) for case in synthetic.plan["cases"]]
    records, items = list(synthetic.records), dict(synthetic.items)
    by_id = {record.case.id: record for record in synthetic.records}
    for case in [case for case in planned if case["kind"] == "evaluate"]:
        mine = case | {"id": case["id"][::-1], "kind": "finetune", "purpose": "finetune", "spec": {"task": "tuned"}}
        planned.append(mine)
        record = by_id[case["id"]]
        table = {name: np.asarray(column, dtype=object if name in ("task", "item", "passage") else float)
                 for name, column in items[case["id"]].items()}  # fmt: skip
        of_nli = table["task"] == "vitaminc"
        items[mine["id"]] = {name: list(column[of_nli]) for name, column in table.items()} | {
            "task": ["tuned-finetuned"] * int(of_nli.sum()), "score": table["score"][of_nli],
            "choice_bits_per_byte": table["choice_bits_per_byte"][of_nli],
        }  # fmt: skip
        told: dict[str, Any] = {
            "tasks": {"tuned-finetuned": {"family": "nli", "chance": 0.5, "n": int(of_nli.sum())}},
            "finetune": {"chosen": 1e-3, "trials": [{"lr": 1e-3, "tokens": tokens + (case["arm"] == drop)}],
                         "questions": {"learnt_from": 100}},
        }  # fmt: skip
        found = {"accuracy/tuned-finetuned": reading(float(np.mean(table["score"][of_nli])), "1", "counted"),
                 "train_flops": reading(2e12, "FLOP", "counted")}  # fmt: skip
        key = CaseKey(**(record.case.model_dump() | {"id": mine["id"], "kind": "finetune"}))
        records.append(
            Record(status="failed", reason="out of memory", case=key)
            if failed
            else Record(status="ok", case=key, metrics=found, detail=told)
        )
    return replace(synthetic, plan=dict(synthetic.plan) | {"cases": planned}, records=tuple(records), items=items)


def study(**more: Any) -> Synthetic:
    return synthesize(saving=0.3, seeds=5, items=4000, seed_accuracy_sd=0.0, **more)


def test_a_fine_tuned_task_joins_its_family() -> None:
    verdict = judge_study(study_of(with_finetuning(study())))
    accuracy = verdict["arms"]["all"]["scales"]["s"]["accuracy"]
    assert accuracy["families"]["nli"]["tasks"] == ["vitaminc", "tuned-finetuned"]
    assert accuracy["outcome"] == "SUPPORTED"
    told = verdict["finetuning"]["s"]
    assert told["equal"] is True
    assert told["arms"]["all"]["cost"]["flops"] == 2e12 * told["arms"]["all"]["finished"]
    charged = verdict["arms"]["all"]["scales"]["s"]["ledger"]
    plain = judge_study(study_of(study()))["arms"]["all"]["scales"]["s"]["ledger"]
    assert charged == plain, "the cost of measuring is charged to no arm"


def test_a_fine_tuning_that_always_fails_blocks_no_other_task() -> None:
    synthetic = with_finetuning(study(), failed=True)
    accuracy = judge_study(study_of(synthetic))["arms"]["all"]["scales"]["s"]["accuracy"]
    assert accuracy["outcome"] == "SUPPORTED"
    assert "out of memory" in accuracy["tasks"]["tuned"]["why"]


def test_a_fine_tuning_without_a_record_is_an_unfinished_study() -> None:
    whole = with_finetuning(study())
    cut = replace(whole, records=tuple(r for r in whole.records if r.case.kind != "finetune" or r.case.arm != "all"))
    accuracy = judge_study(study_of(cut))["arms"]["all"]["scales"]["s"]["accuracy"]
    assert accuracy["outcome"] == "NOT MEASURED"
    assert "not finished" in accuracy["why"]


def test_a_task_that_one_model_lacks_is_named_and_not_compared() -> None:
    whole = with_finetuning(study())

    def strip(record: Record) -> Record:
        if record.case.kind != "finetune" or record.case.arm != "all":
            return record
        metrics = {"accuracy/tuned-finetuned": missing("1", "no network")}
        return record.model_copy(update={"metrics": metrics, "detail": {"tasks": {}}})

    cut = study_of(replace(whole, records=tuple(map(strip, whole.records))))
    point = cut.design.claim_points["all"]["s"]
    found = compare(cut, ("all", point), ("dense", 1.0), "s", 0.025)
    assert found.tasks["tuned-finetuned"] == "no network"
    assert found.families["nli"].tasks == ("vitaminc",)


def test_unequal_budgets_are_said_and_cap_a_confirming_study() -> None:
    uneven = study_of(with_finetuning(study(purpose="confirm"), drop="all"))
    why = finetuneparity.unequal(uneven, "s")
    assert why is not None
    assert "1,001 tokens" in why
    assert "1,000 tokens" in why
    arm = judge_study(uneven)["arms"]["all"]
    assert arm["outcome"] == "INCONCLUSIVE"
    assert "every model had been fine-tuned alike" in arm["why"]


def test_the_report_shows_choices_costs_and_the_accuracy(tmp_path: Path) -> None:
    run = write(tmp_path, with_finetuning(study()))
    api.judge(run)
    build(run)
    page = (run / "report.md").read_text()
    assert "What models were fine-tuned on" in page
    assert "0.001: 20 of 20" in page or "0.001: 5 of 5" in page
    assert "tuned-finetuned" in page
    assert "at chance on most questions until they are fine-tuned" in page
