"""Suite -> plan: an ordered, seeded, content-hashed graph of cases, with what each will cost.

Nothing is run and no torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

import lmopt
from bench.case import TUNING, Case, canonical_hash
from bench.design import Design, Frozen
from bench.estimate import Machine, judge_fits
from bench.expansion import cases_of, unaffordable, with_claim_points
from bench.suite import Arm, Scale, Suite
from lmopt import cost

DISTURBED = (
    "other work ran while this machine's speed was measured: the times are too long; "
    "hint: plan again when it is idle, the better figure is kept"
)


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
    notes: tuple[str, ...] = ()
    """What a person should know of the estimates."""

    def to_json(self) -> str:
        """plan.json."""
        return self.model_dump_json(indent=1, by_alias=True)


def make_plan(suite: Suite, machine: Machine) -> Plan:
    """Expand a suite for a machine.

    Raises:
        SuiteError: a case that the suite expands to is impossible (load_suite reports the same).
        NoSuchNode: placements name nodes that this machine lacks.
    """
    design = with_claim_points(suite)
    cases = judge_fits(_in_running_order(cases_of(suite, design), design.scales), suite, machine)
    return Plan(
        run=run_hash(suite, machine.machine_class),
        machine_class=machine.machine_class,
        design=design,
        arms={arm.name: {s.name: _facts(suite, arm, s) for s in suite.over.scale} for arm in suite.all_arms()},
        cases=cases,
        notes=(*([DISTURBED] if machine.disturbed else []), *unaffordable(suite)),
    )


def run_hash(suite: Suite, machine_class: str) -> str:
    """A run folder's name: ten hex digits of suite without its seeds, version of the techniques, machine class."""
    resolved = suite.model_dump(mode="json")
    resolved["over"].pop("seed")
    # Without a shape of its own an arm is what it was before arms could have one: its study goes on in its folder.
    resolved["arms"] = [{key: arm[key] for key in arm if key != "at" or arm[key]} for arm in resolved["arms"]]
    if not resolved["finetune"]:
        del resolved["finetune"]  # the same of a study without fine-tuning
    return canonical_hash([resolved, lmopt.__version__, machine_class], 10)


# --- order ---------------------------------------------------------------------------------------


def _in_running_order(cases: Iterable[Case], scales: Sequence[str]) -> list[Case]:
    """Preparation, timing, all tuning, then scale by scale and seed by seed with the arms interleaved.

    Scales come in the order in which the suite names them; what uses a training follows it.

    Interleaving spreads whatever drifts on the machine over all arms, and a study cut short has whole seeds.
    """
    ordered = list(cases)
    position = {case.id: index for index, case in enumerate(ordered)}
    seen_of_arm: dict[tuple[Any, ...], int] = {}
    key: dict[str, tuple[Any, ...]] = {}
    turn: dict[str, int] = {}  # of trials, of what trains at their choice, of trials that start from that, and so on
    for case in ordered:
        if case.kind == "prepare":
            key[case.id] = (0, position[case.id])
        elif case.kind == "timing":
            key[case.id] = (1, position[case.id])
        elif case.kind == "train":
            group = (case.arm, case.scale, case.seed, case.purpose in TUNING)
            begun = [key[parent][3] for parent in case.parents if key[parent][0] == 3]  # ranks of trainings
            rank = seen_of_arm[group] = max(seen_of_arm.get(group, -1) + 1, *begun, 0)
            size = -1 if case.scale is None else scales.index(case.scale)
            place = (size, case.seed, rank, position[case.id])
            if case.purpose in TUNING:
                turn[case.id] = max((turn[parent] + 1 for parent in case.parents if parent in turn), default=0)
                key[case.id] = (2, turn[case.id], *place)
            else:
                key[case.id] = (3, *place)
        else:
            after = max((key[parent] for parent in case.parents if key[parent][0] == 3), default=key[case.parents[0]])
            key[case.id] = (*after, position[case.id])
    return sorted(ordered, key=lambda case: key[case.id])


def _facts(suite: Suite, arm: Arm, scale: Scale) -> ArmFacts:
    recipe = suite.resolve(arm.name, scale.name)
    count = cost.parameters(recipe)
    return ArmFacts(
        params_total=count.total,
        params_active=count.active,
        train_flops_per_token=cost.train_flops_per_token(recipe).executed,
        infer_flops_per_token=cost.infer_flops_per_token(recipe),
        change=suite.describe_change(arm.name, scale.name),
    )
