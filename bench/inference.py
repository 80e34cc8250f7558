"""Ways of decoding, judged by an estimand of their own: the saving a generated token, at quality that is not inferior.

They have no horizons and no loss to reach. Replicates are prompts x seeds (one trained model a seed), timed in
interleaved blocks. What must be lossless proves equality instead of quality. An outcome here says nothing about the
hypothesis on training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.design import Endpoint, InferenceArmDesign
from bench.inferencequality import Read, exactness, kept_quality, mean
from bench.record import Record
from bench.savings import evidence_problem
from bench.stats.effect import Effect
from bench.stats.power import detectable
from bench.study import Study
from bench.words import Outcome, finite, interval, listed, percent, several

WORDS: dict[str, str] = {
    "time": "time", "flops": "FLOPs", "energy": "energy", "first_token": "time to the first token",
}  # fmt: skip
"""Endpoints of a generated token; the last is descriptive."""

MAX_FACTOR = 100.0
"""More prompts than this many times are not a plan."""


def judge(study: Study, alpha: float) -> dict[str, Any] | None:
    """Every way of decoding at each scale; None where the study compares none."""
    design = study.design.inference
    if design is None:
        return None
    arms: dict[str, Any] = {}
    for arm in design.arms:
        scales = {scale: _judge_scale(study, arm, scale, alpha) for scale in study.design.scales}
        arms[arm.name] = {
            "primary": arm.primary, "lossless": arm.lossless, "decoding": arm.decoding, "scales": scales,
            **_combine(scales),
        }  # fmt: skip
    return {"model": design.model, "reference": design.reference, "level": 1 - 2 * alpha, "arms": arms}


def _judge_scale(study: Study, arm: InferenceArmDesign, scale: str, alpha: float) -> dict[str, Any]:
    read = _read(study, arm, scale)
    model = "one trained model" if study.design.trains else "this model alone"
    described = {name: _endpoint(name, read, alpha, model) for name in WORDS}
    quality = exactness(read) if arm.lossless else kept_quality(study, read, alpha)
    waiting = [case for case in study.without_record(study.planned("generate", arm.name, scale)) if case.fits]
    if waiting:
        why = f"the study is not finished: {listed([case.label for case in waiting])} without a record"
        outcome: tuple[Outcome, str] = ("NOT MEASURED", why)
    else:
        outcome = _outcome(study, described[arm.primary], arm.primary, quality)
    judged = {"outcome": outcome[0], "why": outcome[1], "endpoints": described, "quality": quality}
    return judged | {
        "n_seeds": len(read.records), "dropped_seeds": {str(seed): why for seed, why in read.dropped.items()},
        "next": _next(study, arm, judged),
    }  # fmt: skip


def _read(study: Study, arm: InferenceArmDesign, scale: str) -> Read:
    records: list[Record] = []
    dropped: dict[int, str] = {}
    for case in study.planned("generate", arm.name, scale):
        record = study.finished(case)
        if record is None:
            dropped[case.seed or 0] = study.missing_words(case)
        else:
            records.append(record)
    return Read(tuple(records), dropped)


# --- savings -------------------------------------------------------------------------------------


def _endpoint(name: str, read: Read, alpha: float, model: str) -> dict[str, Any]:
    """The saving of a generated token in one unit, with its interval over prompts and seeds."""
    found = _effect(name, read, alpha)
    empty: dict[str, Any] = {
        "saving": None, "bounds": [None, None], "ratio": None, "n_items": 0, "df": None, "how": None,
        "detectable_saving": None,
    }  # fmt: skip
    if isinstance(found, str):
        return empty | {"why": found}
    effect, items = found
    room = detectable(effect, alpha) if effect.se else None
    return {
        "saving": -math.expm1(effect.low), "ratio": math.exp(effect.low),
        "bounds": [_saving(effect.upper(alpha)), _saving(effect.lower(alpha))],
        "n_items": items, "df": finite(effect.df), "how": effect.how,
        "detectable_saving": None if room is None else -math.expm1(-room), "why": _replicates(read, items, name, model),
    }  # fmt: skip


def _saving(log_ratio: float) -> float | None:
    return finite(-math.expm1(log_ratio)) if math.isfinite(log_ratio) else None


def _replicates(read: Read, items: int, name: str, model: str) -> str:
    noun = "block" if name == "energy" else "prompt"
    if len(read.records) == 1:
        return f"{several(items, noun)}, {model}"
    return f"{several(len(read.records), 'seed')} x {several(items, noun)}"


def _effect(name: str, read: Read, alpha: float) -> tuple[Effect, int] | str:
    """Mean ln(arm / reference), or why there is none."""
    if not read.records:
        return next(iter(read.dropped.values()), "nothing was generated")
    if name == "flops":
        wrong = [record.detail.get("counts") or {} for record in read.records]
        reasons = [str(one.get("disagreement")) for one in wrong if one.get("agree") is not True]
        if reasons:
            return f"FLOPs were not confirmed by a second count: {reasons[0]}"
    elif reason := evidence_problem(read.records):
        return reason
    if name == "energy":
        blocks = [block for record in read.records for block in record.detail.get("blocks") or ()]
        without = [one for one in blocks if one.get("arm_j") is None or one.get("reference_j") is None]
        reasons = [str(one.get("reason") or "no counter covers the blocks") for one in without]
        if reasons:
            return reasons[0]
        return _crossed(read, "blocks", _log_of("arm_j", "reference_j"), None, alpha)
    key = {"time": "s", "first_token": "first_s", "flops": "flops"}[name]
    return _crossed(
        read, "prompts", _log_of(f"arm_{key}", f"reference_{key}"), "document" if name == "flops" else "block", alpha
    )


def _log_of(mine: str, theirs: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: math.log(float(row[mine]) / float(row[theirs]))


def _crossed(
    read: Read, what: str, value: Callable[[Mapping[str, Any]], float], cluster: str | None, alpha: float
) -> tuple[Effect, int] | str:
    rows = [record.detail.get(what) or [] for record in read.records]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        return f"the records hold different numbers of {what}"
    table = np.array([[value(one) for one in row] for row in rows])
    clusters = None if cluster is None else np.unique([one[cluster] for one in rows[0]], return_inverse=True)[1]
    return mean(table, clusters, alpha), table.shape[1]


# --- outcomes ------------------------------------------------------------------------------------


def _outcome(
    study: Study, primary: Mapping[str, Any], endpoint: Endpoint, quality: Mapping[str, Any]
) -> tuple[Outcome, str]:
    """SAVES needs both: an interval above zero, and exactness or kept quality."""
    design = study.design.inference
    assert design is not None
    if primary["saving"] is None:
        return "NOT MEASURED", str(primary["why"])
    text = f"{_sentence(primary, endpoint, design.reference)}; {quality['why']}"
    low, high = primary["bounds"]
    if quality["kept"] is False:
        return "INFERIOR", text
    if high is not None and high < 0:
        return "COSTS", text
    if low is None or low <= 0:
        return "UNCLEAR", f"{text}; {'one prompt gives no interval' if low is None else 'the interval holds zero'}"
    if quality["kept"] is None:
        return "UNCLEAR", text
    return "SAVES", text


def _sentence(primary: Mapping[str, Any], endpoint: Endpoint, reference: str) -> str:
    """`a token takes 31.2% [28.0, 34.1] less time than with plain (2 seeds x 32 prompts)`."""
    saving, (low, high) = float(primary["saving"]), primary["bounds"]
    ends = [low, high] if saving >= 0 else [None if high is None else -high, None if low is None else -low]
    more = "less" if saving >= 0 else "more"
    text = f"a token takes {percent(abs(saving))} {interval(ends)} {more} {WORDS[endpoint]} than with {reference}"
    return f"{text} ({primary['why']})"


def _next(study: Study, arm: InferenceArmDesign, judged: Mapping[str, Any]) -> list[str]:
    """What would change an outcome, cheapest first."""
    outcome, primary, quality = judged["outcome"], judged["endpoints"][arm.primary], judged["quality"]
    if outcome == "NOT MEASURED":
        if "not finished" in judged["why"]:
            return ["run the same command again: it finishes the cases that have no record"]
        if arm.primary == "energy":
            return [f"measure energy with a counter: {primary['why']} (`lmbench doctor` says what would work here)"]
        return [f"measure what is missing: {primary['why']}"]
    if outcome != "UNCLEAR":
        return []
    steps: list[str] = []
    low, high = primary["bounds"]
    if low is not None and high is not None and low <= 0 <= high:
        steps += _more_prompts(float(primary["saving"]), (high - low) / 2)
    factor = quality.get("more_texts")
    if factor is not None and factor > 1:
        steps.append(
            f"raise inference.quality_texts about {factor:.1f} times: it would decide quality if its drop stays"
        )
    if "could not have failed" in quality["why"]:
        steps.append("add an earlier exit, or harder text: leaving at once must fall outside the margin")
    if len(study.design.seeds) == 1 and study.design.trains:
        steps.append("add seeds: what holds for one trained model may not hold for the next")
    return steps


def _more_prompts(saving: float, half_width: float) -> list[str]:
    """How many times as many prompts part a saving from zero if it stays where it is: half widths go as 1/sqrt(n)."""
    if half_width == 0:
        return []
    factor = (half_width / saving) ** 2 if saving else math.inf
    if factor > MAX_FACTOR:
        return ["the saving is too near zero to be told from it by more prompts"]
    return [f"about {max(factor, 1.1):.1f} times as many prompts would part the saving from zero if it stays"]


def _combine(scales: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One outcome: that of the scales where they agree."""
    steps = [step for judged in scales.values() for step in judged["next"]]
    ahead = {"next": steps[0] if steps else None}
    if len(scales) == 1:
        (only,) = scales.values()
        return {"outcome": only["outcome"], "why": only["why"], **ahead}
    whys = "; ".join(f"at {scale}: {judged['why']}" for scale, judged in scales.items())
    distinct = {str(judged["outcome"]) for judged in scales.values()}
    if len(distinct) == 1:
        return {"outcome": distinct.pop(), "why": whys, **ahead}
    listing = ", ".join(f"{judged['outcome']} at {scale}" for scale, judged in scales.items())
    mixed: Outcome = "NOT MEASURED" if "NOT MEASURED" in distinct else "UNCLEAR"
    return {"outcome": mixed, "why": f"the scales differ ({listing}); {whys}", **ahead}
