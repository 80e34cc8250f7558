from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.budget import BudgetError, fit, parse_budget
from bench.case import Case, canonical_hash
from bench.estimate import WORKER_BYTES, Machine
from bench.forecast import render
from bench.plan import Plan, make_plan, run_hash
from bench.problems import SuiteError
from bench.stanzas import Tune
from bench.suite import Suite, check, load_suite
from lmopt import cost, cost_memory
from tests.bench.small_suite import MOE, loaded

SUITES = Path(__file__).parent.parent.parent / "suites"
MACHINE = Machine(machine_class="test", memory_bytes=2**34, disk_bytes=2**40, flops_per_s={"bf16": 1e11, "fp32": 5e10})


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(SUITES / "quickstart.yaml")


@pytest.fixture(scope="module")
def plan(suite: Suite) -> Plan:
    return make_plan(suite, MACHINE)


def trainings(plan: Plan, arm: str, seed: int = 0) -> dict[float | None, Case]:
    return {c.horizon: c for c in plan.cases if c.kind == "train" and c.arm == arm and c.seed == seed}


def test_ids_are_unique_and_parents_come_before_their_children(plan: Plan) -> None:
    seen: set[str] = set()
    for case in plan.cases:
        assert case.id not in seen
        assert set(case.parents) <= seen
        seen.add(case.id)


def test_the_reference_has_every_horizon_and_an_arm_of_the_economical_layout_one(plan: Plan, suite: Suite) -> None:
    assert set(trainings(plan, "dense")) == set(suite.over.horizon)
    assert set(trainings(plan, "moe")) == {1.0}
    assert not trainings(plan, "fp32"), "a timing arm is not trained"


def test_the_claim_point_is_the_last_step_that_the_claim_can_pay(plan: Plan, suite: Suite) -> None:
    point = plan.design.claim_points["all"]["1m"]
    arm, reference = suite.resolve("all", "1m"), suite.resolve("dense", "1m")
    allowed = 0.8 * cost.train_flops_per_token(reference).executed * reference.steps(1.0)
    each = cost.train_flops_per_token(arm).executed
    assert arm.steps(point) * each <= allowed < (arm.steps(point) + 1) * each
    assert trainings(plan, "all")[point].purpose == "claim_point"


@pytest.mark.parametrize("tokens", ["50k", "60k", "80k", "90k", "1M"])
@pytest.mark.parametrize(
    "batching",
    [
        "{kind: length_warmup, sequences: 8, length: 64, start: 16}",
        "{kind: batch_ramp, sequences: 8, length: 64, start: 2}",
    ],
    ids=["lengths", "sizes"],
)
def test_a_claim_point_whose_phases_are_rounded_apart_spends_no_more_than_it_may(
    tmp_path: Path, batching: str, tokens: str
) -> None:
    arm = f"role: claim\n    change: {{batching: {batching}}}"
    suite = loaded(tmp_path, (f"role: component\n    {MOE}", arm), ("tokens: 100k", f"tokens: {tokens}"))
    point = make_plan(suite, MACHINE).design.claim_points["moe"]["s"]
    arm_recipe, reference = suite.resolve("moe", "s"), suite.resolve("dense", "s")
    share = cost.training_flops(arm_recipe, point) / cost.training_flops(reference, 1.0)
    assert 0.8 - 3 / reference.steps(1.0) < share <= 0.8


def test_tasks_are_evaluated_at_the_ends_only(plan: Plan) -> None:
    evaluated = {(c.arm, c.horizon) for c in plan.cases if c.kind == "evaluate"}
    point = plan.design.claim_points["all"]["1m"]
    assert evaluated == {("dense", 1.0), ("dense", 0.5), ("dense", 0.8), ("all", point)}


def test_arms_with_equal_data_steps_share_their_shards(plan: Plan) -> None:
    shards = [case for case in plan.cases if case.purpose == "shards"]
    assert len(shards) == 2
    (clean,) = (case for case in shards if case.spec["steps"])
    assert clean.id in trainings(plan, "clean")[1.0].parents
    assert clean.id in trainings(plan, "all")[1.0].parents


def test_arms_are_interleaved_within_a_seed_and_seeds_follow_each_other(plan: Plan) -> None:
    order = [(c.seed, c.arm) for c in plan.cases if c.kind == "train"]
    assert [seed for seed, _ in order] == sorted(seed for seed, _ in order)
    first = [arm for seed, arm in order if seed == 0]
    assert first[:4] == ["dense", "clean", "moe", "all"]


def test_scales_run_in_the_order_in_which_the_suite_names_them() -> None:
    ladder = load_suite(SUITES / "ladder.yaml")
    cases = make_plan(ladder, MACHINE).cases
    order = [case.scale for case in cases if case.kind == "train" and case.purpose != "tune"]
    assert list(dict.fromkeys(order)) == ["250k", "500k", "1m", "2m"], "and not by the alphabet"
    assert all(order.count(scale) == 3 * (4 + 2) for scale in order)
    assert order == sorted(order, key=["250k", "500k", "1m", "2m"].index)


def test_the_full_layout_trains_the_claim_up_to_one_and_lets_the_claim_point_stand_for_its_neighbour() -> None:
    first = make_plan(load_suite(SUITES / "first.yaml"), MACHINE)
    point = first.design.claim_points["all"]["2m"]
    assert set(trainings(first, "all")) == {0.6, point, 1.0}
    assert set(trainings(first, "dense")) == {0.5, 0.6, 0.8, 1.0, 1.4}


def test_the_run_is_named_by_everything_but_the_seeds(suite: Suite) -> None:
    name = run_hash(suite, "test")
    assert run_hash(suite.with_over(seed=(0, 1, 2, 3)), "test") == name
    assert run_hash(suite.with_over(horizon=(1.0,)), "test") != name
    assert run_hash(suite, "another") != name


def test_another_seed_is_another_case_and_known_seeds_keep_their_ids(suite: Suite, plan: Plan) -> None:
    more = make_plan(suite.with_over(seed=(0, 1, 2)), MACHINE)
    assert {case.id for case in plan.cases} < {case.id for case in more.cases}


def test_what_does_not_fit_says_why_and_shows_in_the_forecast(suite: Suite) -> None:
    small = make_plan(suite, MACHINE.model_copy(update={"memory_bytes": 10 * 2**20}))
    misfits = [case for case in small.cases if not case.fits]
    assert misfits
    assert all("memory" in (case.reason or "") for case in misfits)
    assert "does not fit" in render(small)
    assert all("this machine has 10 MiB" in (case.reason or "") for case in misfits)
    limited = suite.model_copy(update={"limits": suite.limits.model_copy(update={"case_memory": 10**7})})
    (first, *_) = [case for case in make_plan(limited, MACHINE).cases if not case.fits]
    assert "limits.case_memory allows 9.54 MiB" in (first.reason or "")
    assert "raise the limit" in (first.reason or "")


def test_a_memory_limit_is_the_whole_process_s(suite: Suite) -> None:
    peak = max(case.estimate.peak_memory_bytes or 0 for case in make_plan(suite, MACHINE).cases)

    def misfits(limit: int) -> list[Case]:
        limits = suite.limits.model_copy(update={"case_memory": limit})
        return [case for case in make_plan(suite.model_copy(update={"limits": limits}), MACHINE).cases if not case.fits]

    assert not misfits(peak + WORKER_BYTES)
    (largest, *_) = misfits(peak + WORKER_BYTES - 1)
    assert "425 MiB of it for the process itself; limits.case_memory allows" in (largest.reason or "")
    preparing = next(case for case in misfits(WORKER_BYTES - 1) if case.kind == "prepare")
    assert (preparing.reason or "").endswith("hint: raise the limit")
    assert (preparing.reason or "").startswith("needs about 425 MiB of memory for the process itself; limits.case")


def test_a_plan_reads_back_from_its_json(plan: Plan) -> None:
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_planning_imports_no_torch() -> None:
    program = (
        "import sys; from bench.plan import make_plan\n"
        "from bench.estimate import Machine; from bench.suite import load_suite\n"
        f"make_plan(load_suite({str(SUITES / 'quickstart.yaml')!r}), Machine(machine_class='x'))\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'lm_eval') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- tuning --------------------------------------------------------------------------------------

TUNE = Tune.model_validate({"lr": {"from": 1e-3, "to": 8e-3, "points": 4}, "share": 0.2})


@pytest.fixture(scope="module")
def tuned(suite: Suite) -> Suite:
    return suite.model_copy(update={"tune": TUNE})


def trials_of(plan: Plan, arm: str) -> list[Case]:
    return [case for case in plan.cases if case.purpose == "tune" and case.arm == arm]


def test_every_trained_arm_has_the_same_trials_on_seeds_of_their_own(tuned: Suite) -> None:
    plan = make_plan(tuned, MACHINE)
    for arm in ("dense", "clean", "moe", "all"):
        mine = trials_of(plan, arm)
        assert [case.recipe.optimizer.lr for case in mine if case.recipe] == [1e-3, 2e-3, 4e-3, 8e-3]
        assert {(case.seed, case.horizon) for case in mine} == {(1_000_000, 0.2)}
    assert not trials_of(plan, "fp32"), "a timing arm trains at nothing"


def test_every_training_builds_on_its_arms_trials_and_keeps_shards_first_and_corpus_last(tuned: Suite) -> None:
    plan = make_plan(tuned, MACHINE)
    purposes = {case.id: case.purpose for case in plan.cases}
    for case in plan.cases:
        if case.kind == "train" and case.purpose != "tune":
            mine = [trial.id for trial in trials_of(plan, case.arm)]
            assert list(case.parents[1:-1]) == mine
            assert (purposes[case.parents[0]], purposes[case.parents[-1]]) == ("shards", "corpus")
            assert case.spec["tune"] == {"metric": "val_loss"}


def test_trials_run_before_every_training_and_after_timing(tuned: Suite) -> None:
    stages = [
        case.purpose if case.purpose in ("timing", "tune") else case.kind for case in make_plan(tuned, MACHINE).cases
    ]
    first = {stage: stages.index(stage) for stage in ("timing", "tune", "train")}
    last_trial = len(stages) - 1 - stages[::-1].index("tune")
    assert first["timing"] < first["tune"] < last_trial < first["train"]


def test_another_grid_makes_other_trainings_and_leaves_preparation_timing_and_claim_points(
    tuned: Suite, plan: Plan
) -> None:
    planned = make_plan(tuned, MACHINE)
    wider = tuned.model_copy(update={"tune": TUNE.model_copy(update={"lr": (1.5e-3, 9e-3)})})
    others = {case.id for case in make_plan(wider, MACHINE).cases}
    kept = {case.purpose for case in planned.cases if case.id in others}
    assert kept == {"corpus", "shards", "timing"}
    assert {case.id for case in planned.cases if case.kind == "timing"} == {
        c.id for c in plan.cases if c.kind == "timing"
    }
    assert planned.design.claim_points == plan.design.claim_points


def test_multiples_are_of_each_arms_own_rate(suite: Suite) -> None:
    arms = tuple(
        arm.model_copy(update={"change": {**arm.change, "optimizer": {"lr": 0.01}}}) if arm.name == "moe" else arm
        for arm in suite.arms
    )
    tune = Tune.model_validate({"lr": {"times": [0.5, 1, 2]}, "weight_decay": [0.0, 0.1]})
    plan = make_plan(suite.model_copy(update={"arms": arms, "tune": tune}), MACHINE)
    tried = [(c.recipe.optimizer.lr, c.recipe.optimizer.weight_decay) for c in trials_of(plan, "moe") if c.recipe]
    assert tried == [(0.005, 0.0), (0.005, 0.1), (0.01, 0.0), (0.01, 0.1), (0.02, 0.0), (0.02, 0.1)]
    own = suite.resolve("dense", "1m").optimizer.lr
    assert [c.recipe.optimizer.lr for c in trials_of(plan, "dense") if c.recipe][2] == pytest.approx(own)


def test_trials_cost_what_they_train_and_a_budget_knows_them(tuned: Suite) -> None:
    plan = make_plan(tuned, MACHINE)
    trial, training = trials_of(plan, "moe")[0], trainings(plan, "moe")[1.0]
    assert trial.estimate.train_flops == pytest.approx(0.2 * (training.estimate.train_flops or 0), rel=0.01)
    assert f"in {4 * 4} trials)" in render(plan)
    long = tuned.model_copy(update={"tune": TUNE.model_copy(update={"share": 0.9})})
    whole = spent(make_plan(long, MACHINE))
    cut, notes = fit(long, MACHINE, parse_budget(f"{int(0.5 * whole)} flop"))
    assert 0.4 * whole < spent(make_plan(cut, MACHINE)) <= 0.5 * whole
    assert "tokens cut to" in notes[-1]


def test_where_a_trial_would_be_too_short_steps_are_left_and_it_says_so(tuned: Suite) -> None:
    cut, notes = fit(tuned, MACHINE, parse_budget(f"{int(0.3 * spent(make_plan(tuned, MACHINE)))} flop"))
    assert cut.layout == "sample"
    assert not trials_of(make_plan(cut, MACHINE), "moe")
    assert any("tuning trials are left out" in note for note in notes)
    with pytest.raises(BudgetError, match="nothing of this study fits"):
        fit(tuned, MACHINE, parse_budget("1 flop"))


def test_a_tuned_suite_loads_back_to_the_same_study(tuned: Suite, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(tuned.resolved_yaml())
    assert load_suite(tmp_path / "suite.yaml") == tuned
    assert tuned.design().tuned


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "kind"),
    [("30min", 1800, "time_s"), ("90", 90, "time_s"), ("5M tokens", 5e6, "tokens"), ("1e15 FLOP", 1e15, "flops"),
     ("2h", 7200, "time_s"), ("1 token", 1, "tokens"), ("3T flops", 3e12, "flops"),
     (" 30 min ", 1800, "time_s"), ("5 M tokens", 5e6, "tokens"), ("1e15FLOP", 1e15, "flops")],
)  # fmt: skip
def test_amounts_mean_what_a_person_thinks(text: str, amount: float, kind: str) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.kind) == (amount, kind)


def test_an_empty_budget_is_a_mistake_and_not_the_whole_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import api

    monkeypatch.setattr(api, "this_machine", lambda **_: MACHINE)
    with pytest.raises(BudgetError, match="budget '' is not understood"):
        api.forecast(SUITES / "quickstart.yaml", budget="")


@pytest.mark.parametrize(
    "text",
    ["", "much", "-5min", "0", "5 parsecs", "tokens", "1e15 FLOP/s", "NaN tokens", "1 h 30 min", "30 min tokens", " "],
)
def test_other_words_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(BudgetError, match="hint"):
        parse_budget(text)


def spent(plan: Plan) -> float:
    return sum(case.estimate.train_flops or 0.0 for case in plan.cases)


def test_a_budget_takes_whole_seeds_before_tokens(suite: Suite) -> None:
    four = suite.with_over(seed=(0, 1, 2, 3))
    whole = spent(make_plan(four, MACHINE))
    cut, notes = fit(four, MACHINE, parse_budget(f"{int(0.8 * whole)} flop"))
    assert cut.over.seed == (0, 1, 2)
    assert cut.over.scale == four.over.scale
    assert notes == ["seeds cut to 0, 1, 2"]


def test_below_two_seeds_the_tokens_shrink_for_all_arms_alike(suite: Suite) -> None:
    whole = spent(make_plan(suite, MACHINE))
    cut, notes = fit(suite, MACHINE, parse_budget(f"{int(0.5 * whole)} flop"))
    assert cut.over.seed == suite.over.seed
    assert 0.4 * whole < spent(make_plan(cut, MACHINE)) <= 0.5 * whole
    assert "tokens cut to" in notes[-1]


def test_a_study_that_fits_is_left_alone(suite: Suite) -> None:
    assert fit(suite, MACHINE, parse_budget("10d")) == (suite, [])


def test_what_nothing_fits_is_refused(suite: Suite) -> None:
    with pytest.raises(BudgetError, match="nothing of this study fits"):
        fit(suite, MACHINE, parse_budget("1k flop"))


def test_a_time_budget_needs_a_calibration(suite: Suite) -> None:
    with pytest.raises(BudgetError, match="not known here"):
        fit(suite, Machine(machine_class="x"), parse_budget("1s"))


def test_a_sparse_step_is_expected_at_the_speed_of_sparse_steps(suite: Suite) -> None:
    slow = MACHINE.model_copy(update={"flops_per_s": {"bf16": 1e11, "fp32": 5e10, "bf16+moe": 5e10}})
    usual, slower = (trainings(make_plan(suite, machine), "moe")[1.0].estimate.time_s for machine in (MACHINE, slow))
    assert usual is not None
    assert slower == pytest.approx(2 * usual)


def test_a_calibration_beside_other_work_is_said(suite: Suite, plan: Plan) -> None:
    assert "other work ran" not in render(plan)
    assert "other work ran" in render(make_plan(suite, MACHINE.model_copy(update={"disturbed": True})))


def test_placement_arms_apply_where_there_are_several_nodes(tmp_path: Path) -> None:
    from lmopt.compute.topology import NoSuchNode, nodes
    from tests.lmopt.compute.trees import ONE_NODE, TWO_SOCKETS, plant

    suite = load_suite(SUITES / "numa.yaml")
    by_machine = {
        name: make_plan(suite, MACHINE.model_copy(update={"numa": tuple(nodes(plant(tree, tmp_path / name)))}))
        for name, tree in (("one", ONE_NODE), ("two", TWO_SOCKETS))
    }
    applies = {name: {c.arm: c.applies for c in made.cases} for name, made in by_machine.items()}
    assert applies["one"] == {"anywhere": True, "bound": False, "first_touch": False, "interleaved": False}
    assert all(applies["two"].values())
    assert "timing bound/30m seed 0: not applicable here: one NUMA node" in render(by_machine["one"])
    times = {name: {c.arm: c.estimate.time_s or 0 for c in made.cases} for name, made in by_machine.items()}
    assert times["one"]["bound"] == 0 < times["two"]["bound"]  # what will not run costs nothing
    text = (SUITES / "numa.yaml").read_text().replace("node: 0", "node: 5")
    (tmp_path / "s.yaml").write_text(text)
    machine = MACHINE.model_copy(update={"numa": tuple(nodes(tmp_path / "two"))})
    with pytest.raises(
        NoSuchNode, match=r"arm 'bound': placement bound: no NUMA node 5 on this machine\nhint: it has 0, 1"
    ):
        make_plan(load_suite(tmp_path / "s.yaml"), machine)
    (tmp_path / "s.yaml").write_text(text.replace("kind: interleaved", "kind: interleaved, nodes: [0, 7]"))
    with pytest.raises(NoSuchNode) as refused:
        make_plan(load_suite(tmp_path / "s.yaml"), machine)
    assert str(refused.value) == (  # all at once
        "arm 'bound': placement bound: no NUMA node 5 on this machine\n"
        "arm 'interleaved': placement interleaved: no NUMA node 7 on this machine\n"
        "hint: it has 0, 1"
    )


def test_ramps_are_costed_phase_by_phase() -> None:
    made = make_plan(load_suite(SUITES / "batching.yaml"), MACHINE)
    flops = {c.arm: c.estimate.train_flops for c in made.cases if c.kind == "train" and c.horizon == 1.0}
    assert flops["batch_ramp"] == pytest.approx(flops["fixed"], rel=0.02)
    assert flops["length_warmup"] < 0.995 * flops["fixed"]
    assert flops["micro"] == flops["fixed"]


def test_a_memory_limit_is_the_trainings_and_not_the_pairs_that_is_timed(tmp_path: Path) -> None:
    text = (SUITES / "batching.yaml").read_text()
    (tmp_path / "s.yaml").write_text(text)
    own = next(c for c in make_plan(load_suite(tmp_path / "s.yaml"), MACHINE).cases if c.arm == "micro" and c.horizon)
    assert own.recipe is not None
    least = cost_memory.peak_memory_bytes(own.recipe)

    def limited(size: int) -> Plan:
        (tmp_path / "s.yaml").write_text(text.replace("{kind: adaptive,", f"{{kind: adaptive, memory: {size},"))
        return make_plan(load_suite(tmp_path / "s.yaml"), MACHINE)

    made = limited(least)
    assert {(c.kind, c.fits) for c in made.cases if c.arm == "micro"} == {("train", True), ("timing", True)}
    with pytest.raises(SuiteError, match=r"batching.memory .* is less than a training with one sequence"):
        limited(least - 1)


def test_an_adaptive_arm_takes_what_memory_allows(tmp_path: Path) -> None:
    def peak(batching: str, memory_bytes: int) -> int:
        batch = f"{{{batching} sequences: 64, length: 64}}"
        suite = loaded(tmp_path, ("batching: {sequences: 8, length: 64}", f"batching: {batch}"))
        machine = MACHINE.model_copy(update={"memory_bytes": memory_bytes})
        case = next(case for case in make_plan(suite, machine).cases if case.kind == "train" and case.scale == "m")
        assert case.estimate.peak_memory_bytes is not None
        return case.estimate.peak_memory_bytes

    whole, alone = peak("", MACHINE.memory_bytes), peak("micro_sequences: 1,", MACHINE.memory_bytes)
    assert peak("kind: adaptive,", MACHINE.memory_bytes) == whole
    assert alone < peak(f"kind: adaptive, memory: {(whole + alone) // 2}B,", MACHINE.memory_bytes) < whole
    assert alone <= peak("kind: adaptive,", WORKER_BYTES + (whole + alone) // 2) < whole


def test_an_adaptive_arm_is_not_told_to_lower_what_it_lowers_by_itself(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text((SUITES / "batching.yaml").read_text())
    made = make_plan(load_suite(tmp_path / "s.yaml"), MACHINE.model_copy(update={"memory_bytes": 2**20}))
    reasons = {c.arm: c.reason or "" for c in made.cases if c.kind == "train"}
    assert "hint: shorten batching.length or lower the scale" in reasons["micro"]
    assert "hint: lower batching.micro_sequences or the scale" in reasons["fixed"]


# --- a training that starts from another ---------------------------------------------------------

UPCYCLED = (MOE, "change: {ffn: {kind: moe, experts: 8, top_k: 2, split: 1}, start: {kind: upcycled, horizon: 0.5}}")


def test_an_upcycled_training_builds_on_the_dense_one_of_its_seed(tmp_path: Path) -> None:
    planned = make_plan(loaded(tmp_path, UPCYCLED), MACHINE)
    place = {case.id: index for index, case in enumerate(planned.cases)}
    for case in planned.cases:
        assert all(place[parent] < place[case.id] for parent in case.parents)
    for scale in ("s", "m"):
        for seed in (0, 1):
            dense, moe = (
                {c.horizon: c for c in planned.cases if (c.kind, c.arm, c.scale, c.seed) == ("train", arm, scale, seed)}
                for arm in ("dense", "moe")
            )
            assert moe[1.0].parents[1] == dense[0.5].id
            assert moe[1.0].parents[::2] == dense[0.5].parents
    assert len({case.id for case in planned.cases}) == len(planned.cases)


def test_trials_of_an_upcycled_arm_start_from_a_dense_training_of_their_own_seed(tmp_path: Path) -> None:
    planned = make_plan(loaded(tmp_path, UPCYCLED).model_copy(update={"tune": TUNE}), MACHINE)
    cases, place = {case.id: case for case in planned.cases}, {case.id: n for n, case in enumerate(planned.cases)}
    assert all(place[parent] < place[case.id] for case in planned.cases for parent in case.parents)
    trials = [case for case in planned.cases if case.purpose == "tune" and (case.arm, case.scale) == ("moe", "s")]
    assert len(trials) == 4
    (source,) = {trial.parents[1] for trial in trials}
    assert (cases[source].purpose, cases[source].arm, cases[source].horizon) == ("trial_source", "dense", 0.5)
    assert cases[source].seed == trials[0].seed == 1_000_000
    assert sum(cases[parent].purpose == "tune" for parent in cases[source].parents) == 4, "tuned as the dense arm is"


def test_the_claim_of_an_upcycled_arm_pays_for_the_dense_training(tmp_path: Path) -> None:
    suite = loaded(tmp_path, UPCYCLED, ("- name: moe\n    role: component", "- name: moe\n    role: claim"))
    point = make_plan(suite, MACHINE).design.claim_points["moe"]["s"]
    arm, reference = suite.resolve("moe", "s"), suite.resolve("dense", "s")
    dense_step, step = (cost.train_flops_per_token(one).executed for one in (reference, arm))
    left = 0.8 * dense_step * reference.steps(1.0) - dense_step * reference.steps(0.5)
    assert arm.steps(point) * step <= left < (arm.steps(point) + 1) * step


def test_what_descriptions_say_only_since_later_leaves_earlier_hashes_alone() -> None:
    before = {"recipe": {"tokens": 5}, "arms": [{"name": "a"}]}
    default = {"recipe": {"tokens": 5, "objective": {"kind": "next_token"}}, "arms": [{"name": "a"}], "inference": None}
    other = {"recipe": {"tokens": 5, "objective": {"kind": "layer_skip"}}, "arms": [{"name": "a"}]}
    assert canonical_hash(default, 16) == canonical_hash(before, 16)
    assert canonical_hash(other, 16) != canonical_hash(before, 16)


def test_a_tiny_model_takes_the_time_of_its_calls(tmp_path: Path) -> None:
    """A step of next to no arithmetic still takes what a layer takes however small it is, once a pass."""
    suite = loaded(tmp_path)
    speeds = {"fp32": 1e15, "bf16": 1e15, "bf16+moe": 1e15}
    fixed = {"fp32": 1e-3, "bf16": 1e-3, "bf16+moe": 4e-3}
    plan = make_plan(suite, Machine(machine_class="test", flops_per_s=speeds, fixed_s=fixed))
    for case in plan.cases:
        if case.kind == "train" and case.recipe and case.horizon:
            a_layer = 4e-3 if case.arm != "dense" else 1e-3
            expected = case.recipe.steps(case.horizon) * (case.recipe.model.layers + 1) * a_layer
            assert case.estimate.time_s == pytest.approx(expected, rel=0.01)


def test_a_case_that_replays_decisions_is_known_by_what_they_are(tmp_path: Path) -> None:
    decisions = tmp_path / "batching.jsonl"
    replaying = (MOE, f"change: {{batching: {{kind: adaptive, sequences: 8, length: 64, replay: {decisions}}}}}")

    def ids() -> tuple[str, str]:
        made = make_plan(loaded(tmp_path, replaying), MACHINE)
        case = next(c for c in made.cases if c.kind == "train" and c.arm == "moe")
        return case.id, made.run

    decisions.write_text('{"step": 0, "portions": 1, "micro": 4, "why": ""}\n')
    before = ids()
    assert ids() == before
    decisions.write_text('{"step": 0, "portions": 1, "micro": 2, "why": ""}\n')
    after = ids()
    assert before[0] != after[0]
    assert before[1] != after[1]
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(loaded(tmp_path, replaying).resolved_yaml())
    assert make_plan(load_suite(resolved), MACHINE).run == after[1]
    decisions.write_text('{"step": 0, "portions": 1, "micro": 8, "why": ""}\n')
    with pytest.raises(SuiteError, match="holds other decisions"):
        load_suite(resolved)
    assert any("holds other decisions" in found.message for found in check(resolved))
    decisions.write_text('{"step": 0, "portions": 2, "micro": 8, "why": ""}\n')
    with pytest.raises(SuiteError, match=r"does not fit this recipe: its batch is always 8"):
        loaded(tmp_path, replaying)
    assert any("its batch is always 8" in found.message for found in check(tmp_path / "s.yaml"))
    decisions.write_text('{"step": 0, "portions": 1, "micro": 4, "why": ""}\n')
    of_all = ("{sequences: 8, length: 64}", f"{{kind: adaptive, sequences: 8, length: 64, replay: {decisions}}}")
    loaded(tmp_path, of_all)
    with pytest.raises(SuiteError, match=r"6 sequences, 4 at once, (.|\n)*: it may have 1, 2, 3, 6 at once"):
        loaded(tmp_path, of_all, (MOE, "change: {batching: {sequences: 6}}"))
    decisions.write_text("nonsense\n")
    with pytest.raises(SuiteError, match=r"batching.jsonl:1: not a decision"):
        loaded(tmp_path, replaying)
