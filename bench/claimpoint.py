"""What a claim arm must also show where it has spent no more than the claim allows: its claim point.

The direct test needs no curve: at a cost of at most (1 - at_least) of the reference's, its loss must be no worse than
the reference's at horizon 1.0. And it must beat the reference that simply stopped there (the truncated control).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.design import ArmDesign
from bench.record import Record
from bench.savings import pooled
from bench.stats.additive import Value, exactly
from bench.stats.effect import Effect
from bench.study import Study, same_horizon

HALF = 0.5
"""Horizon of the half-compute control."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of an arm at its claim point minus the reference's, over seeds."""

    effect: Effect | None
    reason: str | None = None
    missing: Mapping[int, str] | None = None


def truncated_horizon(study: Study) -> float:
    """Horizon of the reference that has spent what the claim allows."""
    return round(1 - study.design.hypothesis.saving.at_least, 6)


def claim_horizon(study: Study, arm: str, scale: str) -> float | None:
    """Horizon of an arm's claim point."""
    return study.design.claim_points.get(arm, {}).get(scale)


def losses(
    study: Study, scale: str, metric: str, reference_horizon: float, other: str | None = None
) -> dict[str, Difference]:
    """`metric` at each claim arm's claim point minus the reference's at a horizon; noise pooled over claim arms.

    Args:
        other: an arm to compare all of them with, in place of each one's reference.
    """
    values: dict[str, dict[int, Value]] = {}
    found: dict[str, Difference] = {}
    for arm in study.design.arms:
        if arm.role != "claim":
            continue
        horizon = claim_horizon(study, arm.name, scale)
        if horizon is None:
            found[arm.name] = Difference(None, "the plan holds no claim point")
            continue
        rival = (other or study.reference(arm), reference_horizon)
        values[arm.name], missing = _paired(study, arm, scale, metric, horizon, rival)
        if not values[arm.name]:
            found[arm.name] = Difference(None, next(iter(missing.values()), "no seeds"), missing)
    measured = {name: by_seed for name, by_seed in values.items() if by_seed}
    return found | {name: Difference(effect) for name, effect in pooled(study, measured).items()}


def _paired(
    study: Study, arm: ArmDesign, scale: str, metric: str, horizon: float, rival: tuple[str, float]
) -> tuple[dict[int, Value], dict[int, str]]:
    values: dict[int, Value] = {}
    missing: dict[int, str] = {}
    for seed in study.design.seeds:
        mine = study.at("train", arm.name, scale, seed, horizon)
        theirs = study.at("train", rival[0], scale, seed, rival[1])
        if mine is None or theirs is None:
            name, at = (arm.name, horizon) if mine is None else rival
            missing[seed] = f"no training of {name} at horizon {at:g} at seed {seed}"
            continue
        value = difference(mine, theirs, metric)
        if value is None:
            missing[seed] = f"no {metric} of seed {seed}"
        else:
            values[seed] = value
    return values, missing


def difference(mine: Record, theirs: Record, metric: str) -> Value | None:
    """A metric of one training minus another's, None where one lacks it.

    A training that diverged is worse by an unknown amount.
    """
    if theirs.status == "diverged":
        return None if mine.status == "diverged" else Value(-math.inf, 0.0, None)
    if mine.status == "diverged":
        return Value(0.0, math.inf, None)
    one, two = mine.value(metric), theirs.value(metric)
    return exactly(one - two) if one is not None and two is not None else None


def cost_ratio(study: Study, arm: ArmDesign, scale: str) -> float | None:
    """FLOPs of the claim point over the reference's at horizon 1.0; None where a seed has neither."""
    horizon = claim_horizon(study, arm.name, scale)
    for seed in study.design.seeds if horizon is not None else ():
        assert horizon is not None
        mine = study.at("train", arm.name, scale, seed, horizon)
        theirs = study.at("train", study.reference(arm), scale, seed, 1.0)
        cost, reference = (record.value("train_flops") if record else None for record in (mine, theirs))
        if cost and reference:
            return cost / reference
    return None


def missing_controls(study: Study, arm: ArmDesign, scale: str) -> list[str]:
    """Controls that the study lacks for an arm; without one of them a confirming suite decides nothing."""
    reference = study.reference(arm)
    carried = {name: study.design.controls.get(name) for name in ("smaller", "aa")}
    is_there = {
        "truncated": _is_trained(study, reference, scale, truncated_horizon(study)),
        "half": _is_trained(study, reference, scale, HALF),
    } | {name: held is not None and _is_trained(study, held, scale, 1.0) for name, held in carried.items()}
    return [name for name, there in is_there.items() if not there]


def _is_trained(study: Study, arm: str, scale: str, horizon: float) -> bool:
    cases = [case for case in study.planned("train", arm, scale) if same_horizon(case.horizon, horizon)]
    return bool(cases) and all(study.finished(case) is not None for case in cases)
