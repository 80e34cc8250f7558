"""Why an arm got its outcome: which condition decided, and the cheapest next step that would change it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.stats.power import POWER, seeds_needed
from bench.study import Study, StudyError, load
from bench.verdict import judge_study
from bench.words import NEAR_ALL, NO_ACCURACY, percent, saved, several

SMALL_DEPARTURE = 0.05
"""A departure from multiplying that is worth telling from none."""
MARKS: dict[Any, str] = {True: "met", False: "not met", None: "not measured"}


class UnknownArm(StudyError):
    """The study has no arm or way of decoding of that name: the message lists those that it has."""


def explain(run: Path, arm: str) -> str:
    """The reasons behind an arm's outcome, as text.

    Raises:
        RecordError, StudyError: the run cannot be judged.
        UnknownArm: it has no such arm.
    """
    return explain_study(load(Path(run)), arm)


def explain_study(study: Study, arm: str) -> str:
    """The reasons behind an arm's outcome in a study in memory."""
    decodings = [one.name for one in study.design.inference.arms] if study.design.inference is not None else []
    if arm in decodings:
        return _decoding(judge_study(study)["inference"], arm)
    known = [study.design.baseline, *(one.name for one in study.design.arms), *decodings]
    if arm not in known:
        raise UnknownArm(f"the study has no arm {arm!r}; hint: one of {', '.join(known)}")
    if study.arm(arm) is None:
        return f"{arm} is the baseline: the other arms are compared with it, it has no outcome of its own."
    verdict = judge_study(study)
    judged, ablation = verdict["arms"][arm], verdict["ablation"] or {}
    lines = [f"{arm} ({judged['role']}, primary {judged['primary']}, against {judged['against']}): {judged['outcome']}"]
    for scale, at_scale in judged["scales"].items():
        if len(judged["scales"]) > 1:
            lines += ["", f"at scale {scale}: {at_scale['outcome']}"]
        lines += ["", *_reasons(judged["primary"], at_scale)]
        if ablation.get("of") == arm:
            lines += ["", *_taken_apart(study, ablation["scales"][scale])]
    return "\n".join(lines)


def _decoding(inference: Mapping[str, Any], arm: str) -> str:
    """A way of decoding: what decided, what else was measured, what would change it."""
    judged = inference["arms"][arm]
    kind = "lossless" if judged["lossless"] else "lossy"
    head = f"{arm} (decoding, {kind}, primary {judged['primary']}, against {inference['reference']})"
    lines = [f"{head}: {judged['outcome']}"]
    for scale, at_scale in judged["scales"].items():
        if len(judged["scales"]) > 1:
            lines += ["", f"at scale {scale}: {at_scale['outcome']}"]
        quality = at_scale["quality"]
        lines += [
            "",
            f"decided by: {at_scale['why']}",
            "",
            f"[{MARKS[quality['kept']]}] {quality['kind']}: {quality['why']}",
        ]
        lines += ["", "a generated token:"]
        for name, one in at_scale["endpoints"].items():
            found = "not measured" if one["saving"] is None else saved(one["saving"], one["bounds"])
            lines.append(f"  {name.replace('_', ' ')}: {found} ({one['why']})")
        steps = at_scale["next"] or ["nothing is needed: the outcome is decided"]
        lines += ["", "what would change it:", *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]
    return "\n".join(lines)


def _reasons(primary: str, judged: Mapping[str, Any]) -> list[str]:
    lines: list[str] = [f"decided by: {_deciding(judged)}"]
    if judged.get("conditions"):
        lines += ["", "conditions of SUPPORTED:"]
        lines += [f"  [{MARKS[one['met']]}] {_condition(one)}" for one in judged["conditions"]]
    others = {name: one for name, one in judged["endpoints"].items() if name != primary}
    if others:
        lines += [
            "",
            "other endpoints:",
            *(f"  {name}: {one['outcome']}: {one['why']}" for name, one in others.items()),
        ]
    detectable = judged["endpoints"][primary].get("detectable_saving")
    if detectable is not None:
        shown = (
            "no saving, however large" if detectable >= NEAR_ALL else f"a true saving of {percent(detectable)} or more"
        )
        lines += ["", f"with {percent(POWER, 0)} power this study shows {shown}"]
    if judged.get("sign_disagreement"):
        lines += ["", f"note: {judged['sign_disagreement']}"]
    lines += ["", "what would change it:"]
    steps = judged.get("next") or ["nothing is needed: the outcome is decided"]
    return [*lines, *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]


def _deciding(judged: Mapping[str, Any]) -> str:
    """The first condition that was not met, else the reason of the outcome."""
    if str(judged["why"]).startswith("would be ") or judged["outcome"] == "SUPPORTED":
        return str(judged["why"])
    for condition in judged.get("conditions") or []:
        if condition["met"] is not True:
            return _condition(condition)
    return str(judged["why"])


def _condition(one: Mapping[str, Any]) -> str:
    """`direct test: its loss at the claim point is not shown to be ...`."""
    why = str(one["why"]) if one["met"] is not None else str(one["why"]).removeprefix(NO_ACCURACY)
    return f"{one['name'].replace('_', ' ')}: {why}"


def _taken_apart(study: Study, found: Mapping[str, Any]) -> list[str]:
    """What each factor is worth within the whole, whether savings multiply, and what would tell more."""
    lines = ["taken apart:"]
    for name, factor in found["factors"].items():
        within, alone = factor["within"] or factor["average"], factor["alone"]
        lines.append(f"  {name}: {_worth(within)}" + (f"; alone {_worth(alone)}" if alone else ""))
    multiply = found["multiply"]
    lines.append(f"  do savings multiply: {multiply['outcome'].lower()}: {multiply['why']}")
    n = found["n_seeds"]
    if multiply["outcome"] == "NO DEPARTURE SHOWN" and multiply["se"]:
        sd, alpha = multiply["se"] * math.sqrt(n), study.design.hypothesis.alpha
        needed = seeds_needed(math.log1p(SMALL_DEPARTURE), sd, alpha, arms=len(found["cells"]) - 1)
        if needed is not None and needed > n:
            more = several(needed - n, "more seed")
            lines.append(
                f"  {more} ({needed} in all) would tell a departure of {percent(SMALL_DEPARTURE, 0)} from none"
            )
    return lines


def _worth(found: Mapping[str, Any]) -> str:
    """`saves 12.0% [9.1, 14.8], SAVES`, or why that is not known."""
    if found["saving"] is None:
        return f"not measured ({found['why']})"
    return f"{saved(found['saving'], found['bounds'])}, {found['outcome']}"
