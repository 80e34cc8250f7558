"""Why an arm got its outcome: which condition decided, and the cheapest next step that would change it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.study import Study, load
from bench.verdict import judge_study

MARKS: dict[Any, str] = {True: "met", False: "not met", None: "not measured"}


def explain(run: Path, arm: str) -> str:
    """The reasons behind an arm's outcome, as text.

    Raises:
        RecordError, StudyError: the run cannot be judged, or has no such arm.
    """
    return explain_study(load(Path(run)), arm)


def explain_study(study: Study, arm: str) -> str:
    """The reasons behind an arm's outcome in a study in memory."""
    if study.arm(arm) is None:
        return f"{arm} is the baseline: the other arms are compared with it, it has no outcome of its own."
    judged = judge_study(study)["arms"][arm]
    lines = [f"{arm} ({judged['role']}, primary {judged['primary']}, against {judged['against']}): {judged['outcome']}"]
    for scale, at_scale in judged["scales"].items():
        if len(judged["scales"]) > 1:
            lines += ["", f"at scale {scale}: {at_scale['outcome']}"]
        lines += ["", *_reasons(judged["primary"], at_scale)]
    return "\n".join(lines)


def _reasons(primary: str, judged: Mapping[str, Any]) -> list[str]:
    lines: list[str] = [f"decided by: {_deciding(judged)}"]
    if judged.get("conditions"):
        lines += ["", "conditions of SUPPORTED:"]
        lines += [
            f"  [{MARKS[one['met']]}] {one['name'].replace('_', ' ')}: {one['why']}" for one in judged["conditions"]
        ]
    others = {name: one for name, one in judged["endpoints"].items() if name != primary}
    if others:
        lines += [
            "",
            "other endpoints:",
            *(f"  {name}: {one['outcome']}: {one['why']}" for name, one in others.items()),
        ]
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
            return f"{condition['name'].replace('_', ' ')}: {condition['why']}"
    return str(judged["why"])
