"""What several sizes of model say: the baseline's loss laws, and how each arm's saving goes with compute.

A saving at a size that was not trained is at most "consistent with" the claim, never SUPPORTED: the line is a guess
about nature and its interval is wide. Where the saving shrinks with size, that is said first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from bench import savings
from bench.design import ArmDesign, Target
from bench.stats import scaling
from bench.stats.effect import Effect, quantile
from bench.stats.scaling import Array, Chinchilla, Mask
from bench.stats.trend import MIN_SCALES, AtScale, Interval, Trend, trend
from bench.study import Study
from bench.words import interval, percent, saved, several

MIN_POINTS = 5
"""Trainings below which a law in one variable is no law."""
MIN_POINTS_CHINCHILLA = 7
"""It has five parameters: with fewer points than this nothing is left to speak against it."""
MIN_VALUES = 3
"""Different N (or D, or C) that a law in it needs."""
RESAMPLING_SEED = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """One finished training of the baseline."""

    scale: str
    seed: int
    params: float
    tokens: float
    flops: float
    loss: float


def judge(study: Study, alpha: float) -> dict[str, Any] | None:
    """Laws and trends, ready for verdict.json; None for a study of fewer than three scales that asks for neither.

    Args:
        alpha: one-sided error of each interval.
    """
    targets = study.design.extrapolate
    if not targets and len(study.design.scales) < MIN_SCALES:
        return None
    points = _trainings(study)
    read = {scale: _read(study, scale) for scale in study.design.scales}
    return {
        "targets": [_aim(target) for target in targets], "level": 1 - 2 * alpha,
        "trainings": [dict(zip(Trained.__slots__, astuple(point), strict=True)) for point in points],
        "laws": _laws(points, targets, alpha),
        "arms": {arm.name: _trend(study, arm, read, alpha) for arm in study.design.arms if arm.role != "timing"},
    }  # fmt: skip


def _aim(target: Target) -> dict[str, Any]:
    return {"params": target.params, "tokens": target.training_tokens, "flops": target.flops}


# --- loss laws of the baseline -------------------------------------------------------------------


def _trainings(study: Study) -> list[Trained]:
    """Every finished training of the baseline with its size."""
    baseline = study.design.baseline
    found: list[Trained] = []
    for scale in study.design.scales:
        params = study.facts.get(baseline, {}).get(scale, {}).get("params_total")
        for seed in study.design.seeds if params else ():
            for record in study.trainings(baseline, scale, seed):
                flops, loss, tokens = record.value("train_flops"), record.value("val_loss"), record.detail.get("tokens")
                if record.status == "ok" and flops and loss and tokens:
                    found.append(Trained(scale, seed, float(params), float(tokens), flops, loss))
    return found


def _laws(points: Sequence[Trained], targets: Sequence[Target], alpha: float) -> dict[str, Any]:
    n, d, c, loss = (np.array([getattr(p, name) for p in points]) for name in ("params", "tokens", "flops", "loss"))
    longest = [p.tokens == max(o.tokens for o in points if o.params == p.params) for p in points]
    largest = [p.params == max(n) for p in points]
    best = scaling.frontier(c, loss)
    level = 1 - 2 * alpha
    return {
        "params": _power(n, loss, np.array(longest, bool), level),
        "tokens": _power(d, loss, np.array(largest, bool), level),
        "flops": _power(c, loss, best, level),
        "chinchilla": _chinchilla(n, d, loss, targets, level),
    }


def _power(x: Array, loss: Array, wanted: Mask, level: float) -> dict[str, Any]:
    """Kaplan's law in one variable, over the trainings that the others do not hold back."""
    x, loss = x[wanted], loss[wanted]
    found: dict[str, Any] = {"points": len(x), "log_scale": None, "exponent": None, "bounds": [None, None], "why": None}
    why = _too_few(len(x), MIN_POINTS, ("values", x))
    if why:
        return found | {"why": why}
    law = scaling.fit_power(x, loss)
    bounds = scaling.power_interval(x, loss, seed=RESAMPLING_SEED, level=level)
    return found | {"log_scale": law.log_scale, "exponent": law.exponent, "bounds": list(bounds)}


def _too_few(points: int, needed: int, *variables: tuple[str, Array]) -> str | None:
    if points < needed:
        return f"{several(points, 'training')} of the baseline, {needed} are needed"
    for name, values in variables:
        different = len(np.unique(values))
        if different < MIN_VALUES:
            return f"{different} different {name}, {MIN_VALUES} are needed"
    return None


def _chinchilla(n: Array, d: Array, loss: Array, targets: Sequence[Target], level: float) -> dict[str, Any]:
    """Chinchilla's law over all trainings."""
    nothing: dict[str, Any] = {
        "points": len(n), "parameters": None, "bounds": None, "residual_sd": None, "at_targets": [], "why": None
    }  # fmt: skip
    why = _too_few(len(n), MIN_POINTS_CHINCHILLA, ("sizes", n), ("lengths", d))
    if why:
        return nothing | {"why": why}
    law = scaling.fit_chinchilla(n, d, loss)
    if not law.falls:
        why = "the fitted loss does not fall with size and with length: these trainings do not determine the law"
        return nothing | {"why": why}
    refits = scaling.resampled(n, d, loss, law, seed=RESAMPLING_SEED)
    bounds = scaling.intervals(refits, level)
    for name in ("alpha", "beta"):
        if bounds[name][0] <= 0:
            why = f"the interval of {name} holds 0 ({bounds[name][0]:.2f} to {bounds[name][1]:.2f})"
            return nothing | {"why": f"{why}: these trainings do not determine the law"}
    rest = np.log(np.asarray(law.loss(n, d))) - np.log(loss)
    return {
        "points": len(n), "parameters": {name: getattr(law, name) for name in Chinchilla.__slots__},
        "bounds": {name: list(ends) for name, ends in bounds.items()},
        "residual_sd": float(math.sqrt((rest**2).mean())), "why": None,
        "at_targets": [_at_target(law, refits, target, level) for target in targets],
    }  # fmt: skip


def _at_target(law: Chinchilla, refits: Sequence[Chinchilla], target: Target, level: float) -> dict[str, Any]:
    """Loss of the target, and the size and length that its compute would best be spent on."""
    read: dict[str, Callable[[Chinchilla], float]] = {
        "loss": lambda one: float(one.loss(target.params, target.training_tokens)),
        "optimal_params": lambda one: one.optimum(target.flops)[0],
        "optimal_tokens": lambda one: one.optimum(target.flops)[1],
    }
    tail = (1 - level) / 2
    found: dict[str, Any] = _aim(target)
    is_determined = all(one.falls for one in refits)
    for name, of in read.items():
        ends: list[float | None] = [None, None]
        if is_determined:
            ends = [float(end) for end in np.quantile([of(one) for one in refits], [tail, 1 - tail])]
        found |= {name: of(law), f"{name}_bounds": ends}
    return found


# --- savings against size ------------------------------------------------------------------------


ByArm = Mapping[str, Effect | str]
"""arm -> ln of its cost ratio at equal loss, or why there is none."""


def _read(study: Study, scale: str) -> ByArm:
    """What one scale says of every trained arm."""
    members = [arm for arm in study.design.arms if arm.role != "timing"]
    read = {arm.name: savings.readings(study, arm, scale) for arm in members}
    effects = savings.pooled(study, {name: one.by_seed for name, one in read.items() if one.by_seed})
    return {
        name: effects.get(name) or next(iter(one.dropped.values()), "no training has finished")
        for name, one in read.items()
    }


def _trend(study: Study, arm: ArmDesign, read: Mapping[str, ByArm], alpha: float) -> dict[str, Any]:
    """ln multiplier against compute for one arm."""
    targets = study.design.extrapolate
    scales, missing = _at_scales(study, arm, read)
    found: dict[str, Any] = {
        "points": [_point(name, scale, alpha) for name, scale in scales.items()], "slope": None,
        "slope_bounds": [None, None], "line": None, "at_targets": [], "warning": None,
        "outcome": "NOT MEASURED", "why": None,
    }  # fmt: skip
    line = trend(list(scales.values()))
    if line is None:
        reasons = "; ".join(f"{scale}: {why}" for scale, why in missing.items())
        why = f"{several(len(scales), 'scale')} with a saving and its interval, {MIN_SCALES} are needed"
        return found | {"why": f"{why} ({reasons})" if reasons else why}
    slope = line.slope(alpha)
    found |= {"slope": slope.value, "slope_bounds": [slope.low, slope.high], "warning": _warning(arm, slope)}
    ends = [scale.flops for scale in scales.values()]
    reach = [*ends, *(target.flops for target in targets)]
    grid = np.geomspace(min(reach), max(reach), 25)
    found["line"] = [[float(flops), *_saving(line.at(float(flops), alpha))] for flops in grid]
    if not targets:
        return found | {"outcome": "NO TARGET", "why": "the suite names no size to extrapolate to"}
    found["at_targets"] = [_carried(study, arm, target, line, alpha) for target in targets]
    worst = min(found["at_targets"], key=lambda one: one["outcome"] == "CONSISTENT WITH")
    return found | {"outcome": worst["outcome"], "why": "; ".join(one["why"] for one in found["at_targets"])}


def _carried(study: Study, arm: ArmDesign, target: Target, line: Trend, alpha: float) -> dict[str, Any]:
    """What the line says of a target."""
    value, low, high = _saving(line.at(target.flops, alpha))
    decades = math.log10(target.flops / max(scale.flops for scale in line.scales))
    found = _aim(target) | {"saving": value, "bounds": [low, high], "decades": decades}
    return found | _outcome(study, arm, target, found)


def _at_scales(study: Study, arm: ArmDesign, read: Mapping[str, ByArm]) -> tuple[dict[str, AtScale], dict[str, str]]:
    """What each scale says of an arm, and why the others say nothing."""
    found: dict[str, AtScale] = {}
    missing: dict[str, str] = {}
    for scale, by_arm in read.items():
        effect, flops = by_arm[arm.name], _reference_flops(study, arm, scale)
        if isinstance(effect, str) or flops is None:
            missing[scale] = effect if isinstance(effect, str) else "the reference has no finished training"
        elif effect.value is None:
            missing[scale] = "a seed lies beyond the curve"
        elif effect.se is None:
            missing[scale] = "one seed gives no interval"
        else:
            found[scale] = AtScale(flops, -effect.value, effect.se, effect.df)
    return found, missing


def _reference_flops(study: Study, arm: ArmDesign, scale: str) -> float | None:
    for seed in study.design.seeds:
        record = study.at("train", study.reference(arm), scale, seed, 1.0)
        if record is not None and record.value("train_flops"):
            return record.value("train_flops")
    return None


def _point(name: str, scale: AtScale, alpha: float) -> dict[str, Any]:
    half = quantile(alpha, scale.df) * scale.se
    ends = Interval(scale.log_multiplier, scale.log_multiplier - half, scale.log_multiplier + half)
    value, low, high = _saving(ends)
    return {"scale": name, "flops": scale.flops, "saving": value, "bounds": [low, high]}


def _saving(found: Interval) -> tuple[float, float, float]:
    """ln multiplier as a saving: 1 - 1 / multiplier."""
    return -math.expm1(-found.value), -math.expm1(-found.low), -math.expm1(-found.high)


def _warning(arm: ArmDesign, slope: Interval) -> str | None:
    """What has to be said before anything else: that the saving shrinks with size."""
    if slope.value >= 0:
        return None
    change = f"its multiplier falls by {percent(-math.expm1(slope.value))} with each decade of compute"
    ends = interval([-math.expm1(slope.high), -math.expm1(slope.low)])
    if slope.high < 0:
        return f"the saving of {arm.name} shrinks with size: {change} {ends}"
    return f"the saving of {arm.name} may shrink with size: {change} {ends}, and that it does not is not excluded"


def _outcome(study: Study, arm: ArmDesign, target: Target, found: Mapping[str, Any]) -> dict[str, Any]:
    """At most `CONSISTENT WITH`: an extrapolated saving is never SUPPORTED."""
    low, high = found["bounds"]
    threshold = study.design.hypothesis.saving.at_least if arm.role == "claim" else 0.0
    what = f"a saving of {percent(threshold, 0)}" if threshold else "a saving"
    reached = "beyond the largest scale" if found["decades"] > 0 else "inside the scales"
    text = (
        f"extrapolated to {target.params:.3g} parameters and {target.training_tokens:.3g} tokens, "
        f"{abs(found['decades']):.1f} decades of compute {reached}: {saved(found['saving'], [low, high])}"
    )
    if high < threshold:
        return {"outcome": "NOT CONSISTENT WITH", "why": f"{text}, below {what}"}
    least = ", which also holds a cost" if low < 0 else ""
    return {"outcome": "CONSISTENT WITH", "why": f"{text}, consistent with {what}{least}; nothing was trained there"}
