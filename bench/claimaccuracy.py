"""Accuracy of a claim arm: no drop beyond the margin, and one that could have been seen."""

from __future__ import annotations

from typing import Any

from bench import claimpoint, noninferiority
from bench.design import ArmDesign
from bench.noninferiority import FAMILIES, Comparison
from bench.record import CaseKind
from bench.stats.effect import Effect
from bench.stats.power import detectable
from bench.study import Study
from bench.words import NO_ACCURACY, Outcome, finite, interval, margin_words, points, several

SCORED: tuple[CaseKind, ...] = ("evaluate", "finetune")
"""Kinds of case that accuracy comes from."""


def judge_accuracy(study: Study, arm: ArmDesign, scale: str, alpha: float) -> dict[str, Any]:
    """Non-inferiority at the claim point against the reference at horizon 1.0."""
    horizon = claimpoint.claim_horizon(study, arm.name, scale)
    names = (arm.name, study.reference(arm))
    scored = [case for name in names for kind in SCORED for case in study.planned(kind, name, scale)]
    waiting = study.without_record(scored)
    reference = study.reference(arm)
    found = noninferiority.compare(study, (arm.name, horizon or 0.0), (reference, 1.0), scale, alpha)
    described = _accuracy(found, study.design.hypothesis.accuracy_drop.less_than, alpha)
    if waiting:
        n = several(len(waiting), "evaluation")
        return described | {"outcome": "NOT MEASURED", "why": f"the study is not finished: {n} without a record"}
    if found.difference is None or found.tested is None:
        return described | {"outcome": "NOT MEASURED", "why": f"{NO_ACCURACY}{found.reason}"}
    control = noninferiority.compare(
        study, (reference, claimpoint.truncated_horizon(study)), (reference, 1.0), scale, alpha
    )
    outcome, why = _judge_accuracy(found.tested, found.floor, control, alpha)
    diverged = [seed for seed in study.design.seeds if _diverged(study, arm, scale, seed, horizon)]
    if outcome == "SUPPORTED" and diverged:
        outcome, why = (
            "INCONCLUSIVE",
            f"{several(len(diverged), 'seed')} diverged at the claim point: no accuracy there",
        )
    margin = study.design.hypothesis.accuracy_drop
    of_margin = margin_words(margin.less_than, margin.kind)
    shown = f"accuracy differs by {points(found.difference.low)} {interval(described['bounds'], 100, 2)}"
    described["truncated_control"] = _effect(control.difference, alpha)
    return described | {"outcome": outcome, "why": f"{shown}, margin {of_margin}: {why}{_unmeasured_families(found)}"}


def _judge_accuracy(tested: Effect, floor: float, control: Comparison, alpha: float) -> tuple[Outcome, str]:
    if tested.se is None:
        return "NOT MEASURED", "one seed gives no interval"
    if tested.lower(alpha) > floor:
        if control.tested is None:
            return "INCONCLUSIVE", "within the margin, but the truncated control that it must beat was not evaluated"
        if control.tested.lower(alpha) > floor:
            return (
                "INCONCLUSIVE",
                "accuracy could not have failed: stopping the reference early is within the margin too",
            )
        return "SUPPORTED", "the drop is below the margin"
    if tested.upper(alpha) < floor:
        return "REFUTED", "the drop is above the margin"
    return "INCONCLUSIVE", "the interval holds drops on both sides of the margin"


def _diverged(study: Study, arm: ArmDesign, scale: str, seed: int, horizon: float | None) -> bool:
    record = study.at("train", arm.name, scale, seed, horizon) if horizon is not None else None
    return record is not None and record.status == "diverged"


def _unmeasured_families(found: Comparison) -> str:
    names = [FAMILIES[name] for name in FAMILIES if name in found.families and found.families[name].effect is None]
    return f"; not measured: {' and '.join(names)}" if names else ""


def _accuracy(found: Comparison, margin: float, alpha: float) -> dict[str, Any]:
    room = detectable(found.tested, alpha) if found.tested else None
    crossed = found.crossed
    return {
        **_effect(found.difference, alpha),
        "alpha": alpha, "margin": margin if found.floor else None,
        "detectable_margin": finite(room),
        "margin_shown": None if found.tested is None else finite(found.floor - found.tested.lower(alpha) + margin),
        "n_seeds": len(found.seeds),
        "seed_variance": finite(crossed.seed_variance) if crossed else None,
        "item_variance": finite(crossed.item_variance) if crossed else None,
        "noise_variance": finite(crossed.noise_variance) if crossed else None,
        "note": found.note,
        "tasks": {task: {"counted": not why, "why": why} for task, why in found.tasks.items()},
        "families": {
            name: {
                **_effect(part.effect, alpha), "tasks": list(part.tasks), "why": part.why,
                "outcome": None if part.effect else "NOT MEASURED",
            }
            for name, part in found.families.items()
        },
        "choice_bits_per_byte": _effect(found.bits, alpha),
    }  # fmt: skip


def _effect(effect: Effect | None, alpha: float) -> dict[str, Any]:
    if effect is None:
        return {"difference": None, "bounds": [None, None], "df": None}
    return {
        "difference": finite(effect.value), "bounds": [finite(effect.lower(alpha)), finite(effect.upper(alpha))],
        "df": finite(effect.df),
    }  # fmt: skip
