"""Bits per byte, domain by domain: where an arm does better or worse than its reference after the same training.

An arm that adds text to one domain is judged there, and pays elsewhere: the mean over all text would hide both. For
each seed ln(bits of the arm / bits of the reference) at horizon 1.0, on the same held-out text; seeds are replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from bench import savings
from bench.design import ArmDesign
from bench.record import Record
from bench.stats.additive import Value, exactly
from bench.stats.effect import Effect
from bench.stats.holm import adjust
from bench.study import Study
from bench.words import finite

PREFIX = "bits_per_byte/"
ALL = "bits_per_byte"
"""All domains together: shown beside them, no part of the adjustment."""
HORIZON = 1.0

Outcome = Literal["BETTER", "WORSE", "UNCLEAR"]


def judge(study: Study, scale: str, alpha: float) -> dict[str, dict[str, Any]]:
    """arm -> domain -> change of bits per byte relative to its reference, with its interval and outcome.

    Intervals are two-sided at 1 - 2 alpha, each for itself. Outcomes hold for all domains of an arm at once: two-sided
    p-values after Holm, at 2 alpha. Only domains that some seed of arm and reference were both measured on are there.
    """
    trained = [arm for arm in study.design.arms if arm.role != "timing"]
    found: dict[str, dict[str, Effect]] = {arm.name: {} for arm in trained}
    for metric in (ALL, *_metrics(study, scale)):
        ratios = {arm.name: _ratios(study, arm, scale, metric) for arm in trained}
        for name, effect in savings.pooled(study, {name: one for name, one in ratios.items() if one}).items():
            found[name][metric] = effect
    return {name: _described(effects, alpha) for name, effects in found.items() if effects}


def _metrics(study: Study, scale: str) -> list[str]:
    arms = (study.design.baseline, *(arm.name for arm in study.design.arms))
    records = [record for arm in arms for seed in study.design.seeds for record in study.trainings(arm, scale, seed)]
    return sorted({name for record in records for name in record.metrics if name.startswith(PREFIX)})


def _ratios(study: Study, arm: ArmDesign, scale: str, metric: str) -> dict[int, Value]:
    """ln of the arm's bits over its reference's, of every seed that has both."""
    found: dict[int, Value] = {}
    for seed in study.design.seeds:
        mine = _bits(study.at("train", arm.name, scale, seed, HORIZON), metric)
        theirs = _bits(study.at("train", study.reference(arm), scale, seed, HORIZON), metric)
        if mine and theirs:
            found[seed] = exactly(math.log(mine / theirs))
    return found


def _bits(record: Record | None, metric: str) -> float | None:
    return record.value(metric) if record is not None and record.status == "ok" else None


def _described(effects: Mapping[str, Effect], alpha: float) -> dict[str, Any]:
    domains = [metric for metric in effects if metric != ALL]
    p = {metric: _two_sided(effect) for metric, effect in effects.items()}
    adjusted = dict(zip(domains, adjust([p[metric] for metric in domains]), strict=True)) | {ALL: p.get(ALL)}
    return {
        metric.removeprefix(PREFIX): {
            "change": _relative(effect.low),
            "bounds": [_relative(effect.lower(alpha)), _relative(effect.upper(alpha))],
            "n_seeds": effect.n,
            "p_adjusted": adjusted[metric],
            "outcome": _outcome(effect, adjusted[metric], alpha),
            "how": effect.how,
        }
        for metric, effect in effects.items()
    }


def _two_sided(effect: Effect) -> float:
    return min(1.0, 2 * min(effect.p_not_above(0.0), effect.p_not_below(0.0)))


def _outcome(effect: Effect, p: float | None, alpha: float) -> Outcome:
    if p is None or p > 2 * alpha:
        return "UNCLEAR"
    return "BETTER" if effect.low < 0 else "WORSE"


def _relative(log_ratio: float) -> float | None:
    """exp(x) - 1, None for an open bound."""
    return finite(math.expm1(log_ratio)) if math.isfinite(log_ratio) else None
