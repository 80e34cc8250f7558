"""A claim arm at one scale: every condition that SUPPORTED needs, and the outcome that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from bench import claimpoint, endpoints, finetuneparity, parity
from bench.claimaccuracy import judge_accuracy
from bench.claimpoint import Difference
from bench.design import ArmDesign, Endpoint
from bench.endpoints import Adjustment, no_interval, sentence, unmeasured
from bench.savings import Readings, Saving
from bench.study import Study
from bench.words import Outcome, finite, interval, percent, signless


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
    accuracy = judge_accuracy(context.study, context.arm, context.scale, alpha)
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
        reason += "; " + _undecided(described, at_least)
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


def _undecided(described: Mapping[str, Any], at_least: float) -> str:
    """Why the interval shows nothing: it holds the claim, by itself or once it is adjusted for several claims."""
    low, high = described["bounds"]
    claimed = percent(at_least, 0)
    if (low is not None and low >= at_least) or (high is not None and high < at_least):
        adjusted = interval(described["bounds_adjusted"])
        return f"adjusted for several claims the interval, {adjusted}, holds the claimed {claimed}"
    return no_interval(described, f"the interval holds values on both sides of the claimed {claimed}")


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
