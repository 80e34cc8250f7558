"""What the verdict says, read in one place: endpoints, accuracy, outcomes and their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.words import NO_ACCURACY

UNJUDGED = "the study has not been judged"
ENDPOINTS = (("flops", "Compute", "FLOPs"), ("time", "Time", "seconds"), ("energy", "Energy", "joules"))
"""(name in the verdict, title, unit in words)"""
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Found:
    """One estimate of the verdict."""

    value: float | None
    bounds: Bounds | None
    outcome: str | None
    why: str
    raw: dict[str, Any]


def endpoint(study: RunFolder, arm: str, scale: str, name: str, saving: str = "saving_all_in") -> Found:
    """The saving at equal loss of an arm at a scale, in one currency; without a value it says why."""
    return _found(mapping(mapping(at_scale(study, arm, scale).get("endpoints")).get(name)), saving, study, name)


def accuracy(study: RunFolder, arm: str, scale: str) -> Found:
    """The difference in accuracy (arm - reference) at the claim point."""
    return _found(mapping(at_scale(study, arm, scale).get("accuracy")), "difference", study, "accuracy")


def at_scale(study: RunFolder, arm: str, scale: str) -> dict[str, Any]:
    """Everything the verdict says about an arm at one scale; empty where it says nothing."""
    return mapping(mapping(study.judged(arm).get("scales")).get(scale))


def _found(raw: dict[str, Any], key: str, study: RunFolder, what: str) -> Found:
    fallback = UNJUDGED if study.verdict is None else f"the verdict holds no {what} of this arm"
    value = number(raw.get(key))
    outcome = raw.get("outcome")
    return Found(
        value=value,
        bounds=pair(raw.get("bounds")),
        outcome=str(outcome) if outcome else None,
        why=str(raw.get("why") or fallback).removeprefix(NO_ACCURACY),
        raw=raw,
    )


def pair(value: Any) -> Bounds | None:
    """Two bounds; an open side is None. None where there is no interval."""
    ends = sequence(value)
    if len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return None if low is None and high is None else (low, high)


def arm_outcome(study: RunFolder, arm: str, scale: str | None = None) -> str | None:
    """The outcome of an arm, or of its primary endpoint at one scale where there are several."""
    declared = study.declared(arm)
    if scale is not None and len(study.design.scales) > 1 and declared is not None:
        outcome = at_scale(study, arm, scale).get("outcome") or endpoint(study, arm, scale, declared.primary).outcome
        if outcome:
            return str(outcome)
    outcome = study.judged(arm).get("outcome")
    return str(outcome) if outcome else None


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a claim needs."""

    label: str
    met: bool | None
    """Shown, not shown, or not measured."""
    why: str


CONDITIONS = {
    "saving": "saves enough",
    "direct_test": "as good at the claim point",
    "truncated_control": "better than stopping early",
    "smaller_control": "better than a smaller dense model",
    "accuracy": "keeps its accuracy",
    "counts": "FLOP counts agree",
}


def conditions(study: RunFolder, arm: str, scale: str) -> list[Condition]:
    """What a claim needs, in the verdict's order."""
    found: list[Condition] = []
    for one in map(mapping, sequence(at_scale(study, arm, scale).get("conditions"))):
        name, met = str(one.get("name")), one.get("met")
        label = CONDITIONS.get(name, name.replace("_", " "))
        found.append(
            Condition(
                label, met if isinstance(met, bool) else None, str(one.get("why") or "").removeprefix(NO_ACCURACY)
            )
        )
    return found


def sentence(text: str) -> str:
    """A reason as a sentence of its own: a capital at the front, a full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")
