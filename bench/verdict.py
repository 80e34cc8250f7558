"""Records + hypothesis -> SUPPORTED | REFUTED | INCONCLUSIVE | NOT MEASURED, with reasons.

A claim arm is judged on its primary endpoint and on accuracy, both of which it must win (intersection-union, each at
the full alpha). Components are held against zero: SAVES, COSTS or UNCLEAR. Every outcome comes with the sentence that
says why; none comes from an exception, a default, or a task at chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import (
    claims,
    controlrow,
    domains,
    endpoints,
    finetuneparity,
    inference,
    interactions,
    ledger,
    parity,
    savings,
    sizes,
)
from bench.design import ArmDesign, Endpoint
from bench.endpoints import Adjustment
from bench.ledger import ENDPOINTS
from bench.nextstep import next_steps
from bench.planned import PlannedCase
from bench.savings import Found, Readings, Saving
from bench.stats.additive import Value, effects
from bench.study import Study, load
from bench.words import Outcome, finite, listed, several

SCHEMA = 1


def judge(run: Path) -> dict[str, Any]:
    """Judge a run folder: the content of verdict.json. Writes nothing.

    Raises:
        RecordError: records that cannot be trusted.
        StudyError: a folder that cannot be judged.
    """
    return judge_study(load(run))


def judge_study(study: Study) -> dict[str, Any]:
    """Judge a study in memory."""
    alpha, look = _alpha(study)
    by_scale = {scale: _judge_scale(study, scale, alpha) for scale in study.design.scales}
    arms: dict[str, Any] = {}
    for arm in study.design.arms:
        scales = {scale: judged[arm.name] for scale, judged in by_scale.items()}
        arms[arm.name] = {
            "role": arm.role, "primary": arm.decided_by, "against": study.reference(arm), "scales": scales,
            **_combine(arm, scales),
        }  # fmt: skip
    hypothesis = study.design.hypothesis.model_dump(mode="json")
    return {
        "schema": SCHEMA, "suite": study.design.suite, "run": study.run, "purpose": study.design.purpose,
        "layout": study.design.layout, "hypothesis": hypothesis, "look": {"number": look, "alpha": alpha},
        "reference": {scale: _reference(study, scale) for scale in study.design.scales}, "arms": arms,
        "ablation": _ablation(study, alpha), "sizes": sizes.judge(study, alpha),
        "inference": inference.judge(study, alpha),
        "tuning": _described(study, parity.describe), "finetuning": _described(study, finetuneparity.describe),
    }  # fmt: skip


def _described(study: Study, describe: Callable[[Study, str], dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """What there is to say of each scale."""
    return {scale: found for scale in study.design.scales if (found := describe(study, scale))}


def _alpha(study: Study) -> tuple[float, int]:
    """One-sided error of this look, and its number.

    In a confirming study each look at other records spends half of what the look before spent.
    """
    seen = frozenset(record.sha256 for record in study.records.values() if record.sha256)
    earlier = {look for look in study.looks if not look >= seen}
    spent = len(earlier) if study.confirms else 0
    return study.design.hypothesis.alpha / 2**spent, len(earlier) + 1


# --- one scale -----------------------------------------------------------------------------------


def _judge_scale(study: Study, scale: str, alpha: float) -> dict[str, dict[str, Any]]:
    trained = [arm for arm in study.design.arms if arm.role != "timing"]
    read = {arm.name: savings.readings(study, arm, scale) for arm in trained}
    effect = savings.pooled(study, {name: one.by_seed for name, one in read.items() if one.by_seed})
    found: dict[str, dict[Endpoint, Saving]] = {}
    for arm in trained:
        one = read[arm.name]
        flops = Found(effect[arm.name], by_seed=one.by_seed, source="counted FLOPs") if arm.name in effect else None
        flops = flops or Found(None, _no_reading(one))
        found[arm.name] = savings.endpoints(study, arm, scale, flops)
    claimed = [arm for arm in trained if arm.role == "claim"]
    at_least = study.design.hypothesis.saving.at_least
    adjusted: dict[Endpoint, dict[str, Adjustment]] = {
        endpoint: endpoints.adjust({arm.name: found[arm.name][endpoint] for arm in claimed}, at_least, alpha)
        for endpoint in ENDPOINTS
    }
    points = claims.claim_points(study, scale)
    by_domain = domains.judge(study, scale, alpha)
    judged: dict[str, dict[str, Any]] = {}
    for arm in study.design.arms:
        if arm.role == "timing":
            judged[arm.name] = _timing_arm(study, arm, scale, alpha)
            continue
        described: dict[Endpoint, dict[str, Any]] = {
            endpoint: endpoints.describe(study, arm, saving, read[arm.name], alpha)
            for endpoint, saving in found[arm.name].items()
        }
        missing: dict[Endpoint, str | None] = {
            endpoint: _not_ready(study, arm, scale, endpoint) for endpoint in ENDPOINTS
        }
        if arm.role == "claim":
            mine: dict[Endpoint, Adjustment | None] = {
                endpoint: adjusted[endpoint].get(arm.name) for endpoint in ENDPOINTS
            }
            context = claims.Context(study, arm, scale, alpha, found[arm.name], read[arm.name], mine, missing, points)
            outcome = claims.judge_claim(context, described)
        else:
            for endpoint, saving in found[arm.name].items():
                endpoints.judge_component(described[endpoint], saving, read[arm.name], missing[endpoint])
            outcome = {key: described[arm.primary][key] for key in ("outcome", "why")}
            outcome["why"] += controlrow.words(study, arm, scale, points.smaller or {}, alpha)
        judged[arm.name] = {
            **outcome, "endpoints": described, "sign_disagreement": endpoints.sign_disagreement(described),
            "per_token": _per_token(study, arm, scale, alpha), "ledger": _ledger(study, arm, scale),
            "domains": {} if missing["flops"] else by_domain.get(arm.name, {}),
        }  # fmt: skip
        judged[arm.name]["next"] = next_steps(study, arm, scale, judged[arm.name])
    return judged


def _no_reading(read: Readings) -> str:
    return next(iter(read.dropped.values()), "no training has finished")


def _not_ready(study: Study, arm: ArmDesign, scale: str, endpoint: Endpoint) -> str | None:
    """Why an endpoint cannot be decided yet or at all: cases that were never run, or counts that disagree."""
    cases: dict[str, PlannedCase] = {}
    held_against = study.design.controls.values() if arm.role == "claim" else ()
    for name in dict.fromkeys((arm.name, study.reference(arm), *held_against)):
        cases |= {case.id: case for case in study.planned("train", name, scale)}
        cases |= study.needed(name, scale)
        cases |= {case.id: case for case in study.trials(name, scale)}
    if endpoint == "time":
        cases |= {case.id: case for case in study.planned("timing", arm.name, scale)}
    return unfinished(study, list(cases.values())) or (
        _disagreement(study, list(cases)) if endpoint == "flops" else None
    )


def unfinished(study: Study, cases: list[PlannedCase]) -> str | None:
    """Planned cases that were never brought to any end, in words: deciding now would be deciding when to stop."""
    waiting = [case for case in study.without_record(cases) if case.fits]
    if not waiting:
        return None
    labels = listed([case.label for case in waiting])
    return f"the study is not finished: {len(waiting)} of {several(len(cases), 'case')} without a record ({labels})"


def _disagreement(study: Study, cases: list[str]) -> str | None:
    for case in cases:
        record = study.records.get(case)
        counts: Mapping[str, Any] = (record.detail.get("counts") if record else None) or {}
        if record and counts.get("agree") is False:
            return f"the independent FLOP counts of {record.case.arm} disagree: {counts.get('disagreement')}"
    return None


def _timing_arm(study: Study, arm: ArmDesign, scale: str, alpha: float) -> dict[str, Any]:
    step = endpoints.judge_step(study, arm, scale, alpha)
    waiting = unfinished(study, study.planned("timing", arm.name, scale))
    if waiting:
        step |= {"outcome": "NOT MEASURED", "why": waiting}
    judged: dict[str, Any] = {
        "outcome": step["outcome"], "why": step["why"], "endpoints": {"time": step},
        "per_token": _per_token(study, arm, scale, alpha),
    }  # fmt: skip
    return judged | {"next": next_steps(study, arm, scale, judged)}


def _ablation(study: Study, alpha: float) -> dict[str, Any] | None:
    """The factors of a combined change, taken apart at each scale; None where the study has no ablation."""
    design = study.design.ablation
    if design is None:
        return None
    scales: dict[str, Any] = {}
    for scale in study.design.scales:
        cases = [case for arm in design.cells for case in study.planned("train", arm, scale)]
        scales[scale] = interactions.judge(study, scale, alpha, unfinished(study, cases))
    return {**design.model_dump(mode="json"), "level": 1 - 2 * alpha, "scales": scales}


# --- descriptive ---------------------------------------------------------------------------------


def _per_token(study: Study, arm: ArmDesign, scale: str, alpha: float) -> dict[str, Any]:
    """Savings a token, without regard to loss: training FLOPs, inference FLOPs, seconds, joules."""
    reference = study.reference(arm)
    mine, theirs = (ledger.flops_per_token(study, name, scale).value for name in (arm.name, reference))
    facts = [study.facts.get(name, {}).get(scale, {}).get("infer_flops_per_token") for name in (arm.name, reference)]
    found: dict[str, Any] = {
        "flops": 1 - mine / theirs if mine and theirs else None,
        "infer_flops": 1 - facts[0] / facts[1] if all(facts) else None,
        "time": None, "time_bounds": [None, None], "energy": None, "energy_bounds": [None, None],
    }  # fmt: skip
    step = endpoints.judge_step(study, arm, scale, alpha)
    if step["outcome"] != "NOT MEASURED":
        found |= {"time": step["saving_training"], "time_bounds": step["bounds"]}
    joules = _log_joules_a_token(study, arm, scale)
    if joules:
        effect = effects({arm.name: joules})[arm.name]
        found["energy"] = finite(1 - ledger.ratio(effect.low))
        found["energy_bounds"] = [
            finite(1 - ledger.ratio(effect.upper(alpha))),
            finite(1 - ledger.ratio(effect.lower(alpha))) if effect.se is not None else None,
        ]
    return found


def _log_joules_a_token(study: Study, arm: ArmDesign, scale: str) -> Mapping[int, Value] | None:
    """ln of the ratio of joules a token of each seed; None where they were not measured."""
    flops = dict.fromkeys(study.design.seeds, savings.ZERO)
    found = savings.energy_of_trainings(study, arm, scale, flops, shift=0.0)
    return found.by_seed if found.effect is not None else None


def _ledger(study: Study, arm: ArmDesign, scale: str) -> dict[str, Any]:
    """What the arm was charged for, and its mean training costs."""
    reference = study.reference(arm)
    return {
        "training": {name: cost.value for name, cost in ledger.mean_training_costs(study, arm.name, scale).items()},
        "budget_tokens": ledger.budget_tokens(study, reference, scale),
        "charged": [_charge(one) for one in ledger.charges(study, arm.name, reference, scale)],
        "charged_to_reference": [_charge(one) for one in ledger.charges(study, reference, arm.name, scale)],
        "shared": [_charge(one) for one in ledger.shared(study, arm.name, reference, scale)],
    }


def _charge(charge: ledger.Charge) -> dict[str, Any]:
    costs = {name: cost.value for name, cost in charge.costs.items()}
    reasons = {name: cost.reason for name, cost in charge.costs.items() if cost.reason}
    return {"case": charge.case, "label": charge.label, **costs, "reasons": reasons}


def _reference(study: Study, scale: str) -> dict[str, Any]:
    costs = ledger.mean_training_costs(study, study.design.baseline, scale)
    return {
        "arm": study.design.baseline,
        "training": {name: cost.value for name, cost in costs.items()},
        "budget_tokens": ledger.budget_tokens(study, study.design.baseline, scale),
    }


# --- all scales ----------------------------------------------------------------------------------


def _combine(arm: ArmDesign, scales: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An arm's outcome: that of its scales where they agree, else undecided."""
    outcomes = {scale: str(judged["outcome"]) for scale, judged in scales.items()}
    steps = [
        step if len(scales) == 1 else f"at {scale}: {step}"
        for scale, judged in scales.items() for step in judged.get("next", [])
    ]  # fmt: skip
    ahead = {"next": steps[0] if steps else None}
    distinct = set(outcomes.values())
    if len(scales) == 1:
        (only,) = scales.values()
        return {"outcome": only["outcome"], "why": only["why"], **ahead}
    whys = "; ".join(f"at {scale}: {judged['why']}" for scale, judged in scales.items())
    if len(distinct) == 1:
        return {"outcome": distinct.pop(), "why": whys, **ahead}
    mixed: Outcome = "INCONCLUSIVE" if arm.role == "claim" else "UNCLEAR"
    if "NOT MEASURED" in distinct:
        mixed = "NOT MEASURED"
    listing = ", ".join(f"{outcome} at {scale}" for scale, outcome in outcomes.items())
    return {"outcome": mixed, "why": f"the scales differ ({listing}); {whys}", **ahead}
