"""The cheapest next seeds, items, sensor or horizon that would change an outcome, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.design import ArmDesign
from bench.stats.power import MAX_SEEDS, items_needed, seeds_needed
from bench.study import Study
from bench.words import percent, several


def next_steps(study: Study, arm: ArmDesign, scale: str, judged: Mapping[str, Any]) -> list[str]:
    """What to do next about an arm at a scale, cheapest first; empty where everything is decided."""
    if judged["outcome"] in ("SUPPORTED", "REFUTED", "SAVES", "COSTS"):
        return []
    described = judged["endpoints"][arm.decided_by]
    if arm.role == "timing":
        return [*_of_missing(arm, described), *_of_blocks(described)]
    if study.design.layout == "sample":
        return ["train the arms: run it with a larger budget, on a larger machine or at a smaller scale"]
    steps = [
        *_of_missing(arm, described),
        *(_of_divergence(study, arm, scale) or _of_censoring(described)),
        *_of_interval(study, arm, scale, described),
    ]
    if arm.role == "claim":
        steps += _of_accuracy(study, judged["accuracy"])
        steps += _of_controls(judged["why"])
    return list(dict.fromkeys(steps))


def _of_missing(arm: ArmDesign, described: Mapping[str, Any]) -> list[str]:
    if described["outcome"] != "NOT MEASURED":
        return []
    why = str(described["why"])
    if "not finished" in why:
        return ["run the same command again: it finishes the cases that have no record"]
    if arm.decided_by == "energy":
        return [f"measure energy with a counter: {why} (`lmbench doctor` says what would work here)"]
    if any("failed" in reason for reason in described.get("dropped_seeds", {}).values()):
        return ["run the failed cases again, after what their logs say is mended"]
    _, elsewhere, reason = why.partition("not applicable here: ")
    return [f"run it on another machine: here, {reason}" if elsewhere else f"measure what is missing: {why}"]


def _of_blocks(described: Mapping[str, Any]) -> list[str]:
    """Interleaved blocks are a timing arm's replicates, as seeds are a trained arm's."""
    saving, sd, n = described["saving_all_in"], described.get("sd"), described["n_blocks"]
    if described["outcome"] != "UNCLEAR" or not saving or sd is None:
        return []
    needed = seeds_needed(abs(math.log(1 - saving)), sd, described["alpha"])
    if needed is None:
        return [f"no number of blocks up to {MAX_SEEDS} would part {percent(saving)} from 0%"]
    return [f"add blocks: `timing: {{blocks: {max(needed, n + 1)}}}` would part {percent(saving)} from 0% if it stays"]


def _of_divergence(study: Study, arm: ArmDesign, scale: str) -> list[str]:
    ended = [study.finished(case) for case in study.planned("train", arm.name, scale)]
    diverged = sum(record is not None and record.status == "diverged" for record in ended)
    if not diverged:
        return []
    return [f"lower the learning rate of {arm.name}: {several(diverged, 'training')} of {len(ended)} diverged"]


def _of_censoring(described: Mapping[str, Any]) -> list[str]:
    steps: list[str] = []
    if described.get("censored", {}).get("never_reached"):
        steps.append("add a longer horizon for the arm, or shorter ones for its reference: its loss was never reached")
    if described.get("censored", {}).get("reached_at_once"):
        steps.append(
            "add a shorter horizon for the arm, or longer ones for its reference: the loss was reached at once"
        )
    return steps


def _of_interval(study: Study, arm: ArmDesign, scale: str, described: Mapping[str, Any]) -> list[str]:
    n, value = described["n_seeds"], described["saving_training"]
    if n == 1:
        return [f"add seeds: one gives no interval, 3 screen and 5 make a headline{_price(study, arm, scale, 2)}"]
    if value is None or described["df"] in (None, 0) or described["outcome"] not in ("INCONCLUSIVE", "UNCLEAR"):
        return []
    threshold = study.design.hypothesis.saving.at_least if arm.role == "claim" else 0.0
    decided = described["saving_all_in"]
    distance = abs(math.log(1 - decided) - math.log(1 - threshold)) if decided is not None and decided < 1 else 0.0
    is_above = (decided or 0.0) >= threshold
    errors = described.get("alphas_adjusted") or [described["alpha"]] * 2
    noise, alpha = described["noise"], _of_next_look(study, errors[0 if is_above else 1])
    needed = seeds_needed(distance, noise["sd"], alpha, arms=noise["arms"])
    side = "above" if is_above else "below"
    if needed is None:
        return [
            f"no number of seeds up to {MAX_SEEDS} would part {percent(decided or 0.0)} from {percent(threshold, 0)}"
        ]
    if needed <= n:
        return []
    more = several(needed - n, "more seed")
    price = _price(study, arm, scale, needed - n)
    return [
        f"add {more} ({needed} in all{price}): if the saving stays where it is, its interval then lies {side} "
        f"{percent(threshold, 0)}"
    ]


def _of_next_look(study: Study, alpha: float) -> float:
    """One-sided error left for a look at more records than this one's, which had `alpha`."""
    return alpha / 2 if study.confirms else alpha


def _price(study: Study, arm: ArmDesign, scale: str, seeds: int) -> str:
    """What so many more seeds of the arm and its reference take here, from the trainings that ran."""
    total_s = 0.0
    for name in (arm.name, study.reference(arm)):
        times: dict[float | None, float] = {}
        for case in study.planned("train", name, scale):
            record = study.finished(case)
            took_s = record.value("train_time_s") if record else None
            if took_s:
                times[case.horizon] = took_s
        total_s += math.fsum(times.values())
    return f", about {_duration(seeds * total_s)} of training here" if total_s else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _of_accuracy(study: Study, accuracy: Mapping[str, Any]) -> list[str]:
    steps: list[str] = []
    why = str(accuracy["why"])
    if accuracy["outcome"] == "NOT MEASURED":
        uncounted = [task for task, facts in accuracy["tasks"].items() if not facts["counted"]]
        if uncounted:
            names = ", ".join(uncounted)
            steps.append(f"train longer, or choose easier tasks or more items: {names} cannot show a drop here")
        elif "not finished" not in why:
            steps.append("evaluate tasks at the claim point, the reference's end and its half-compute control")
    if "could not have failed" in why:
        steps.append("add items or harder tasks: stopping the reference early must fall outside the margin")
    if accuracy["outcome"] != "INCONCLUSIVE" or not accuracy["margin"] or accuracy["item_variance"] is None:
        return steps
    distance = abs(float(accuracy["difference"] or 0.0) + float(accuracy["margin"]))
    alpha, n = _of_next_look(study, accuracy["alpha"]), int(accuracy["n_seeds"])
    of_items = accuracy["item_variance"] + accuracy["noise_variance"]
    of_seeds = accuracy["seed_variance"] - accuracy["noise_variance"]
    factor = items_needed(distance, of_items, of_seeds, alpha)
    if factor is not None and factor > 1:
        return [*steps, f"add items: about {factor:.1f} times as many would decide accuracy if its difference stays"]
    sd = math.sqrt((accuracy["item_variance"] + accuracy["seed_variance"]) * n)
    seeds = seeds_needed(distance, sd, alpha)
    if seeds is None:
        return [*steps, f"no number of seeds up to {MAX_SEEDS} would decide accuracy: it lies too near the margin"]
    return [*steps, f"add seeds: about {max(seeds, n + 1)} in all would decide accuracy if its difference stays"]


def _of_controls(why: str) -> list[str]:
    if not why.startswith("would be "):
        return []
    return [f"make it so that {why.partition(' if ')[2].partition(';')[0]}"]
