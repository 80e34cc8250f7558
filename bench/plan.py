"""Suite -> plan: an ordered, seeded, content-hashed graph of cases, with what each will cost.

Nothing is run and no torch is imported: costs come from closed forms (`lmopt.cost`) and, where one was made,
from a short calibration of this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, Literal

from pydantic import Field

import lmopt
from bench.design import Design, Frozen
from bench.record import CaseKind
from bench.suite import Arm, Scale, Suite
from lmopt import cost
from lmopt.recipe import Recipe

Purpose = Literal[
    "corpus", "shards", "reference", "variant", "claim_point", "truncated", "half", "smaller", "timing", "evaluate"
]
CHECKPOINT_COPIES = 3
"""Weights and two Adam moments, each in float32."""
BYTES_A_TOKEN = 2
"""A token on disk (uint16)."""


SAME_HORIZON = 0.02
"""A claim arm's horizon this close to its claim point is left to the claim point, which joins the arm's curve."""


class Estimate(Frozen):
    """What a case is expected to cost here, before it runs."""

    train_flops: float | None = None
    peak_memory_bytes: int | None = None
    time_s: float | None = None
    disk_bytes: int | None = None


class Case(Frozen):
    """One unit of work, identified by what it computes."""

    id: str
    kind: CaseKind
    arm: str
    scale: str | None = None
    seed: int | None = None
    horizon: float | None = None
    parents: tuple[str, ...] = ()
    purpose: Purpose
    recipe: Recipe | None = None
    spec: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What the kind needs beside the recipe: a stage, tasks, timing blocks."""
    estimate: Estimate = Estimate()
    fits: bool = True
    reason: str | None = None
    """Why it does not fit this machine."""

    @property
    def label(self) -> str:
        """Short name for people: `train moe/s seed 0 x1.0`."""
        parts = [self.kind if self.purpose not in ("corpus", "shards") else self.purpose, self.arm]
        if self.scale is not None:
            parts[1] += f"/{self.scale}"
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.horizon is not None:
            parts.append(f"x{self.horizon:g}")
        return " ".join(parts)


class Machine(Frozen):
    """What planning needs to know of a machine."""

    machine_class: str
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    flops_per_s: dict[str, float] = Field(default_factory=dict[str, float])
    """Sustained training FLOP/s by precision (`fp32`, `bf16`); empty before a calibration."""
    peak_flops_per_s: dict[str, float] = Field(default_factory=dict[str, float])
    """Best measured rate of a matrix product by precision; empty where it was not measured undisturbed."""


class ArmFacts(Frozen):
    """What an arm is, in numbers and words, at one scale."""

    params_total: int
    params_active: int
    train_flops_per_token: float
    infer_flops_per_token: float
    change: str


class Plan(Frozen):
    """The whole study as a graph in running order: parents come before their children."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    run: str
    machine_class: str
    design: Design
    arms: dict[str, dict[str, ArmFacts]]
    cases: tuple[Case, ...]

    def to_json(self) -> str:
        """plan.json."""
        return self.model_dump_json(indent=1, by_alias=True)


def canonical_hash(value: Any, digits: int) -> str:
    """The first hex digits of the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def make_plan(suite: Suite, machine: Machine) -> Plan:
    """Expand a suite for a machine.

    Raises:
        SuiteError: a case that the suite expands to is impossible (load_suite reports the same).
    """
    design = _with_claim_points(suite)
    cases = tuple(_judge_fit(case, suite, machine) for case in _in_running_order(_cases(suite, design)))
    return Plan(
        run=run_hash(suite, machine.machine_class),
        machine_class=machine.machine_class,
        design=design,
        arms={arm.name: {s.name: _facts(suite, arm, s) for s in suite.over.scale} for arm in suite.all_arms()},
        cases=cases,
    )


def run_hash(suite: Suite, machine_class: str) -> str:
    """A run folder's name: ten hex digits of suite without its seeds, version of the techniques, machine class."""
    resolved = suite.model_dump(mode="json")
    resolved["over"].pop("seed")
    return canonical_hash([resolved, lmopt.__version__, machine_class], 10)


# --- which cases ---------------------------------------------------------------------------------


def _with_claim_points(suite: Suite) -> Design:
    """The design, with the horizon at which each claim arm has spent (1 - at_least) of the reference's FLOPs."""
    design = suite.design()
    points = {
        arm.name: {scale.name: _claim_horizon(suite, arm, scale) for scale in suite.over.scale}
        for arm in suite.arms
        if arm.role == "claim"
    }
    return design.model_copy(update={"claim_points": points})


def _claim_horizon(suite: Suite, arm: Arm, scale: Scale) -> float:
    recipe = suite.resolve(arm.name, scale.name)
    reference = suite.resolve(arm.against or suite.baseline.name, scale.name)
    allowed_flops = (1 - suite.hypothesis.saving.at_least) * _flops_per_step(reference) * reference.steps(1.0)
    steps = max(1, int(allowed_flops / _flops_per_step(recipe)))
    return round(steps * recipe.batching.tokens / recipe.tokens, 6)


def _flops_per_step(recipe: Recipe) -> float:
    return cost.train_flops_per_token(recipe).executed * recipe.batching.tokens


def _cases(suite: Suite, design: Design) -> Iterator[Case]:
    corpus = _corpus_case(suite)
    yield corpus
    shards: dict[str, Case] = {}
    for arm in suite.all_arms():
        steps = [step.model_dump(mode="json") for step in suite.resolve(arm.name, suite.over.scale[0].name).data]
        key = canonical_hash(steps, 16)
        if key not in shards:
            shards[key] = _identify(
                Case(id="", kind="prepare", arm=arm.name, purpose="shards", parents=(corpus.id,),
                     spec={"stage": "shards", "steps": steps})
            )  # fmt: skip
            yield shards[key]
    for arm, scale in product(suite.all_arms(), suite.over.scale):
        recipe = suite.resolve(arm.name, scale.name)
        data = shards[canonical_hash([step.model_dump(mode="json") for step in recipe.data], 16)]
        yield from _arm_cases(suite, design, arm, scale, recipe, data)


def _corpus_case(suite: Suite) -> Case:
    spec = {"stage": "corpus", "data": suite.data.model_dump(mode="json")}
    return _identify(Case(id="", kind="prepare", arm=suite.baseline.name, purpose="corpus", spec=spec))


def _arm_cases(suite: Suite, design: Design, arm: Arm, scale: Scale, recipe: Recipe, data: Case) -> Iterator[Case]:
    is_reference = arm.name == suite.baseline.name
    if not is_reference:
        yield _timing_case(suite, arm, scale, recipe, data)
    if arm.role == "timing":
        return
    for (horizon, purpose), seed in product(_horizons(suite, design, arm, scale).items(), suite.over.seed):
        train = _identify(
            Case(id="", kind="train", arm=arm.name, scale=scale.name, seed=seed, horizon=horizon,
                 parents=(data.id, *data.parents), purpose=purpose, recipe=recipe)
        )  # fmt: skip
        yield train
        if suite.evaluate.tasks and _is_evaluated(suite, purpose, horizon):
            yield _identify(
                Case(id="", kind="evaluate", arm=arm.name, scale=scale.name, seed=seed, horizon=horizon,
                     parents=(train.id, *data.parents), purpose="evaluate", recipe=recipe,
                     spec={"tasks": list(suite.evaluate.tasks), "limit": suite.evaluate.limit})
            )  # fmt: skip


def _horizons(suite: Suite, design: Design, arm: Arm, scale: Scale) -> dict[float, Purpose]:
    """horizon -> why it is run. A horizon that serves two ends keeps the first."""
    found: dict[float, Purpose] = {}
    is_referred = arm.name in {suite.baseline.name} | {other.against for other in suite.arms}
    if is_referred:
        found |= dict.fromkeys(suite.over.horizon, "reference")
    elif suite.layout == "full" and arm.role == "claim":
        found |= {horizon: "variant" for horizon in suite.over.horizon if horizon <= 1.0}
    else:
        found[1.0] = "variant"
    if arm.role == "claim":
        point = design.claim_points[arm.name][scale.name]
        near = [horizon for horizon in found if horizon != 1.0 and abs(horizon - point) <= SAME_HORIZON * point]
        found = {horizon: purpose for horizon, purpose in found.items() if is_referred or horizon not in near}
        found.setdefault(point, "claim_point")
    if is_referred and any(other.role == "claim" for other in suite.arms):
        if suite.controls.truncated:
            found[round(1 - suite.hypothesis.saving.at_least, 6)] = "truncated"
        if suite.controls.half:
            found[0.5] = "half"
    return found


def _is_evaluated(suite: Suite, purpose: Purpose, horizon: float) -> bool:
    if suite.evaluate.when == "every":
        return True
    return purpose in ("claim_point", "truncated", "half") or (purpose == "reference" and horizon == 1.0)


def _timing_case(suite: Suite, arm: Arm, scale: Scale, recipe: Recipe, data: Case) -> Case:
    against = arm.against or suite.baseline.name
    spec = {
        "against": against,
        "reference": suite.resolve(against, scale.name).model_dump(mode="json"),
        **suite.timing.model_dump(mode="json"),
    }
    return _identify(
        Case(id="", kind="timing", arm=arm.name, scale=scale.name, seed=suite.over.seed[0], parents=(data.id,),
             purpose="timing", recipe=recipe, spec=spec)
    )  # fmt: skip


def _identify(case: Case) -> Case:
    """Fill in the id: a hash of what is computed, not of what the arm is called."""
    recipe = None if case.recipe is None else case.recipe.model_dump(mode="json")
    content = [case.kind, recipe, case.spec, case.scale, case.seed, case.horizon, list(case.parents)]
    return case.model_copy(update={"id": canonical_hash(content, 16)})


# --- order ---------------------------------------------------------------------------------------


def _in_running_order(cases: Iterable[Case]) -> list[Case]:
    """Preparation, then timing, then seed by seed with the arms interleaved; an evaluation follows its training.

    Interleaving spreads whatever drifts on the machine over all arms, and a study cut short has whole seeds.
    """
    ordered = list(cases)
    position = {case.id: index for index, case in enumerate(ordered)}
    seen_of_arm: dict[tuple[Any, ...], int] = {}
    key: dict[str, tuple[Any, ...]] = {}
    for case in ordered:
        if case.kind == "prepare":
            key[case.id] = (0, position[case.id])
        elif case.kind == "timing":
            key[case.id] = (1, position[case.id])
        elif case.kind == "train":
            group = (case.arm, case.scale, case.seed)
            rank = seen_of_arm[group] = seen_of_arm.get(group, -1) + 1
            key[case.id] = (2, case.scale, case.seed, rank, position[case.id])
        else:
            key[case.id] = (*key[case.parents[0]], position[case.id])
    return sorted(ordered, key=lambda case: key[case.id])


# --- what it will cost ---------------------------------------------------------------------------


def _facts(suite: Suite, arm: Arm, scale: Scale) -> ArmFacts:
    recipe = suite.resolve(arm.name, scale.name)
    count = cost.parameters(recipe)
    return ArmFacts(
        params_total=count.total,
        params_active=count.active,
        train_flops_per_token=cost.train_flops_per_token(recipe).executed,
        infer_flops_per_token=cost.infer_flops_per_token(recipe),
        change=suite.describe_change(arm.name),
    )


def _judge_fit(case: Case, suite: Suite, machine: Machine) -> Case:
    estimate = _estimate(case, suite, machine)
    limit = min(filter(None, (suite.limits.case_memory, machine.memory_bytes)), default=None)
    reason = None
    if limit and estimate.peak_memory_bytes and estimate.peak_memory_bytes > limit:
        reason = (
            f"needs about {estimate.peak_memory_bytes / 2**30:.1f} GiB of memory, {limit / 2**30:.1f} GiB are there; "
            "hint: lower batching.micro_sequences or the scale"
        )
    elif machine.disk_bytes and estimate.disk_bytes and estimate.disk_bytes > machine.disk_bytes:
        reason = (
            f"needs about {estimate.disk_bytes / 2**30:.1f} GiB of disk, {machine.disk_bytes / 2**30:.1f} GiB are free"
        )
    return case.model_copy(update={"estimate": estimate, "fits": reason is None, "reason": reason})


def _estimate(case: Case, suite: Suite, machine: Machine) -> Estimate:
    if case.recipe is None:
        return Estimate()
    memory_bytes = cost.peak_memory_bytes(case.recipe)
    disk_bytes = 4 * CHECKPOINT_COPIES * cost.parameters(case.recipe).total
    speed = machine.flops_per_s.get(case.recipe.precision.kind)
    if case.kind == "train":
        assert case.horizon is not None
        flops = _flops_per_step(case.recipe) * case.recipe.steps(case.horizon)
        time_s = flops / speed if speed else None
        return Estimate(train_flops=flops, peak_memory_bytes=memory_bytes, time_s=time_s, disk_bytes=disk_bytes)
    if case.kind == "timing":
        reference = Recipe.model_validate(case.spec["reference"])
        steps = suite.timing.blocks * suite.timing.steps
        time_s = _timing_time_s(steps, (case.recipe, reference), machine)
        memory_bytes += cost.peak_memory_bytes(reference)
        return Estimate(peak_memory_bytes=memory_bytes, time_s=time_s, disk_bytes=0)
    return Estimate(peak_memory_bytes=memory_bytes, disk_bytes=0)


def _timing_time_s(steps: int, recipes: Iterable[Recipe], machine: Machine) -> float | None:
    total_s = 0.0
    for recipe in recipes:
        speed = machine.flops_per_s.get(recipe.precision.kind)
        if not speed:
            return None
        total_s += steps * _flops_per_step(recipe) / speed
    return total_s
