"""A claim arm at one scale: every condition that SUPPORTED needs, and the outcome that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from bench import claimpoint, endpoints, finetuneparity, noninferiority, parity
from bench.claimpoint import Difference
from bench.design import ArmDesign, Endpoint
from bench.endpoints import Adjustment, no_interval, sentence, unmeasured
from bench.noninferiority import FAMILIES, Comparison
from bench.record import CaseKind
from bench.savings import Readings, Saving
from bench.stats.effect import Effect
from bench.stats.power import detectable
from bench.study import Study
from bench.words import NO_ACCURACY, Outcome, finite, interval, margin_words, percent, points, several, signless

SCORED: tuple[CaseKind, ...] = ("evaluate", "finetune")
"""Kinds of case that accuracy comes from."""


@dataclass(frozen=True, slots=True)
class ClaimPoints:
    """What every claim arm of a scale shows at its claim point, noise pooled."""

    direct: Mapping[str, Difference]
    """Loss minus the reference's at horizon 1.0."""
    truncated: Mapping[str, Difference]
    """Loss minus that of the reference stopped at the same compute."""
    smaller: Mapping[str, Difference] | None
    """Loss minus that of the smaller dense model; None where the study has none."""
    bits_per_byte: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Context:
    """What one claim is judged by."""

    study: Study
    arm: ArmDesign
    scale: str
    alpha: float
    savings: Mapping[Endpoint, Saving]
    readings: Readings
    adjusted: Mapping[Endpoint, Adjustment | None]
    not_ready: Mapping[Endpoint, str | None]
    points: ClaimPoints


def claim_points(study: Study, scale: str) -> ClaimPoints:
    """The comparisons at the claim points of a scale."""
    smaller = study.design.controls.get("smaller")
    truncated = claimpoint.truncated_horizon(study)
    return ClaimPoints(
        direct=claimpoint.losses(study, scale, "val_loss", 1.0),
        truncated=claimpoint.losses(study, scale, "val_loss", truncated),
        smaller=claimpoint.losses(study, scale, "val_loss", 1.0, smaller) if smaller else None,
        bits_per_byte=claimpoint.losses(study, scale, "bits_per_byte", 1.0),
    )


def judge_claim(context: Context, described: dict[Endpoint, dict[str, Any]]) -> dict[str, Any]:
    """Outcome, conditions and readings at the claim point; fills in the endpoints' outcomes."""
    primary = context.arm.primary
    adjusted = context.adjusted[primary]
    alpha = adjusted.supports.alpha if adjusted else context.alpha
    direct = _at_point(
        context.points.direct.get(context.arm.name),
        alpha,
        wanted="no worse than the reference's at horizon 1",
        otherwise="worse than the reference's at horizon 1",
    )
    truncated = _at_point(
        context.points.truncated.get(context.arm.name), alpha, wanted="better than that of the reference stopped there"
    )
    conditions = [
        {"name": "direct_test", "met": direct["met"], "why": direct["why"]},
        {"name": "truncated_control", "met": truncated["met"], "why": truncated["why"]},
    ]
    smaller = None
    if context.points.smaller is not None:
        wanted = "better than that of the smaller dense model of the same FLOPs a token"
        smaller = _at_point(context.points.smaller.get(context.arm.name), alpha, wanted)
        conditions.append({"name": "smaller_control", "met": smaller["met"], "why": smaller["why"]})
    for endpoint in described:
        _judge_endpoint(context, endpoint, described[endpoint], [*conditions, _counted(context, endpoint)])
    accuracy = judge_accuracy(context, alpha)
    conditions.insert(0, _met("saving", described[primary]["outcome"], described[primary]["why"]))
    conditions.append(_met("accuracy", accuracy["outcome"], accuracy["why"]))
    conditions.append(_counted(context, primary))
    outcome, why = _combine(described[primary], accuracy, primary)
    outcome, why = _cap(context, outcome, why)
    bits = context.points.bits_per_byte.get(context.arm.name)
    return {
        "outcome": outcome, "why": why, "conditions": conditions, "accuracy": accuracy,
        "direct_test": direct, "truncated": truncated, "smaller": smaller,
        "bits_per_byte": _difference(bits, context.alpha),
        "claim_point": {
            "horizon": claimpoint.claim_horizon(context.study, context.arm.name, context.scale),
            "cost_ratio": claimpoint.cost_ratio(context.study, context.arm, context.scale),
        },
    }  # fmt: skip


# --- saving --------------------------------------------------------------------------------------


def _judge_endpoint(
    context: Context, endpoint: Endpoint, described: dict[str, Any], conditions: list[dict[str, Any]]
) -> None:
    """Outcome of one endpoint of a claim: its interval, the direct test, the truncated control, the counts."""
    saving, adjusted = context.savings[endpoint], context.adjusted[endpoint]
    missing = context.not_ready[endpoint] or unmeasured(saving, context.readings)
    if missing or adjusted is None:
        described |= {"outcome": "NOT MEASURED", "why": missing or "nothing was measured"}
        return
    low, high = adjusted.bounds
    described["bounds_adjusted"] = [finite(low), finite(high)]
    described["alphas_adjusted"] = [adjusted.supports.alpha, adjusted.refutes.alpha]
    at_least, effect, all_in = context.study.design.hypothesis.saving.at_least, saving.found.effect, saving.all_in
    if effect and all_in:
        described["detectable_saving"] = endpoints.detectable_saving(effect, all_in, at_least, adjusted.supports.alpha)
    described["p_adjusted"] = {"below_claim": adjusted.supports.p, "above_claim": adjusted.refutes.p}
    claimed = percent(at_least, 0)
    reason = sentence(described, saving)
    failing = [one for one in conditions if one["met"] is not True]
    outcome: Outcome = "INCONCLUSIVE"
    if adjusted.refutes.rejected:
        outcome = "REFUTED"
        beyond = f"even the upper bound {_upper(high)} is below"
        if high >= at_least:
            beyond = "adjusted for several claims it is still below"  # its bound is the claim itself (Holm)
        reason += f"; {beyond} the claimed {claimed}"
    elif not adjusted.supports.rejected:
        reason += "; " + no_interval(described, f"the interval holds values on both sides of the claimed {claimed}")
    elif failing:
        reason += f"; the interval is above the claimed {claimed}, but {failing[0]['why']}"
    elif not _covers_claim_point(context, endpoint):
        reason += (
            f"; the interval is above the claimed {claimed}, but the claim point, which is set in FLOPs, costs more"
        )
    else:
        outcome = "SUPPORTED"
        reason += f"; even the lower bound {_bound(low)} is not below the claimed {claimed}, and {conditions[0]['why']}"
    described |= {"outcome": outcome, "why": reason}


def _upper(value: float) -> str:
    """A bound that is a cost is called one: `(33.7% more)`."""
    return f"({percent(-value)} more)" if finite(value) is not None and value < 0 else _bound(value)


def _bound(value: float) -> str:
    return percent(value) if finite(value) is not None else "(none)"


def _covers_claim_point(context: Context, endpoint: Endpoint) -> bool:
    """Whether the claim point, set in FLOPs, is within the claimed cost in this unit as well."""
    if endpoint == "flops":
        return True
    flops = context.savings["flops"].found.effect
    mine = context.savings[endpoint].found.effect
    ratio = claimpoint.cost_ratio(context.study, context.arm, context.scale)
    if flops is None or mine is None or ratio is None or not (math.isfinite(mine.high) and math.isfinite(flops.high)):
        return False  # no upper end of the cost is known, and so no claim of it stands
    per_flop = mine.high - flops.high  # as between the values themselves, where no seed is censored
    return ratio * math.exp(per_flop) <= 1 - context.study.design.hypothesis.saving.at_least


def _counted(context: Context, endpoint: Endpoint) -> dict[str, Any]:
    """Whether FLOPs were counted independently and agree (a disagreement is caught before)."""
    study = context.study
    trained = [
        (case.label, record)
        for name in (context.arm.name, study.reference(context.arm))
        for case in study.planned("train", name, context.scale)
        if (record := study.finished(case)) is not None and record.status == "ok"
    ]
    unchecked = [label for label, record in trained if (record.detail.get("counts") or {}).get("agree") is not True]
    met = endpoint != "flops" or not unchecked if trained else None
    why = f"FLOPs of {unchecked[0]} were not confirmed by a second count" if unchecked else "all counts of FLOPs agree"
    if not trained:
        why = "no training has finished"
    return {"name": "counts", "met": met, "why": why}


def _at_point(difference: Difference | None, alpha: float, wanted: str, otherwise: str = "") -> dict[str, Any]:
    """One-sided test that a loss at the claim point is below another; a loss that is exactly equal is not.

    `otherwise` is what to call it where the opposite is shown: "not `wanted`" unless given.
    """
    described = _difference(difference, alpha)
    effect = difference.effect if difference else None
    if effect is None:
        return described | {
            "met": None,
            "why": f"its loss at the claim point could not be compared: {described['why']}",
        }
    shown = f"{signless(effect.value, 4)} nats" if effect.value is not None else "a training diverged"
    met = effect.upper(alpha) < 0
    found = f"is {wanted}" if met else f"is not shown to be {wanted}"
    if effect.lower(alpha) > 0:
        found = f"is {otherwise or f'not {wanted}'}"
    why = f"its loss at the claim point {found} ({shown} {interval(described['bounds'], 1.0, 4)})"
    return described | {"met": met, "why": why}


def _difference(difference: Difference | None, alpha: float) -> dict[str, Any]:
    effect = difference.effect if difference else None
    if effect is None:
        why = (difference.reason if difference else None) or "no claim point was trained"
        return {"difference": None, "bounds": [None, None], "n_seeds": 0, "why": why}
    how = effect.how if effect.value is not None else f"a training diverged; {effect.how}"
    return {
        "difference": finite(effect.value), "bounds": [finite(effect.lower(alpha)), finite(effect.upper(alpha))],
        "n_seeds": effect.n, "sd": finite(effect.sd), "df": finite(effect.df), "why": how,
    }  # fmt: skip


# --- accuracy ------------------------------------------------------------------------------------


def judge_accuracy(context: Context, alpha: float) -> dict[str, Any]:
    """Non-inferiority at the claim point against the reference at horizon 1.0."""
    study, arm, scale = context.study, context.arm, context.scale
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


# --- together ------------------------------------------------------------------------------------


def _met(name: str, outcome: str, why: str) -> dict[str, Any]:
    met = {"SUPPORTED": True, "REFUTED": False, "INCONCLUSIVE": False}.get(outcome)
    return {"name": name, "met": met, "why": why}


def _combine(saving: Mapping[str, Any], accuracy: Mapping[str, Any], primary: Endpoint) -> tuple[Outcome, str]:
    """Both must be won; either can lose."""
    of_saving, of_accuracy = str(saving["outcome"]), str(accuracy["outcome"])
    if of_saving == "REFUTED":
        return "REFUTED", saving["why"]
    if of_accuracy == "REFUTED":
        return "REFUTED", accuracy["why"]
    if of_saving == "NOT MEASURED":
        return "NOT MEASURED", f"{endpoints.WORDS[primary]}: {saving['why']}"
    if of_saving == "INCONCLUSIVE":
        also = f"; {accuracy['why']}" if of_accuracy != "SUPPORTED" else ""
        return "INCONCLUSIVE", f"{saving['why']}{also}"
    return cast("Outcome", of_accuracy), f"{saving['why']}; {accuracy['why']}"


def _cap(context: Context, outcome: Outcome, why: str) -> tuple[Outcome, str]:
    """A confirming study without tuning parity or a control decides nothing, in either direction."""
    if not context.study.confirms or outcome not in ("SUPPORTED", "REFUTED"):
        return outcome, why
    untuned = parity.unequal(context.study, context.scale)
    lacks = [*context.study.deviations]
    lacks += [f"every arm had had the same number of tuning trials ({untuned})"] if untuned else []
    unlike = finetuneparity.unequal(context.study, context.scale)
    lacks += [f"every model had been fine-tuned alike ({unlike})"] if unlike else []
    lacks += [
        f"the {name} control had been run"
        for name in claimpoint.missing_controls(context.study, context.arm, context.scale)
    ]
    if not lacks:
        return outcome, why
    return "INCONCLUSIVE", f"would be {outcome} if {' and '.join(lacks)}; {why}"
