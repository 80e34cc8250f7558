"""Whether every model was fine-tuned alike, and what that took: read from the records, as for tuning trials.

Fine-tuning is how accuracy is measured, not a part of any technique: its cost stands apart and is charged to no arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench import ledger
from bench.parity import trained
from bench.planned import PlannedCase
from bench.record import Record
from bench.study import Study


def describe(study: Study, scale: str) -> dict[str, Any] | None:
    """Each arm's choices and costs at a scale; None where nothing was fine-tuned."""
    arms = {arm: found for arm in trained(study) if (found := study.planned("finetune", arm, scale))}
    if not arms:
        return None
    why = unequal(study, scale)
    return {
        "equal": why is None, "why": why or "every model had the same questions, trials and tokens",
        "arms": {arm: _describe(study, cases) for arm, cases in arms.items()},
    }  # fmt: skip


def unequal(study: Study, scale: str) -> str | None:
    """Why the models of a scale cannot be called fine-tuned alike; None where they can, or none was."""
    first: dict[str, tuple[PlannedCase, tuple[Any, ...]]] = {}
    for arm in trained(study):
        for case in study.planned("finetune", arm, scale):
            record = study.finished(case)
            if record is None or not _told(record):
                continue
            mine = _budget(record)
            other, theirs = first.setdefault(str(case.spec.get("task")), (case, mine))
            if mine != theirs:
                return f"{case.label} had {_words(mine)}, {other.label} {_words(theirs)}"
    return None


def _told(record: Record) -> Mapping[str, Any]:
    return record.detail.get("finetune") or {}


def _budget(record: Record) -> tuple[Any, ...]:
    """(trials, tokens of the longest trial, questions learnt from); one that diverged stopped early."""
    tried = [*_told(record).get("trials", ())]
    tokens = max((one.get("tokens") or 0 for one in tried), default=0)
    return len(tried), tokens, (_told(record).get("questions") or {}).get("learnt_from")


def _words(budget: tuple[Any, ...]) -> str:
    trials, tokens, questions = budget
    return f"{trials} trials of {tokens:,} tokens on {questions} questions"


def _describe(study: Study, cases: Iterable[PlannedCase]) -> dict[str, Any]:
    listed = list(cases)
    done = [(case, record) for case in listed if (record := study.finished(case)) is not None and _told(record)]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for case, record in done:
        told = _told(record)
        tasks.setdefault(str(case.spec.get("task")), []).append(
            {
                "case": case.id, "seed": case.seed, "horizon": case.horizon, "chosen": told.get("chosen"),
                "trials": told.get("trials"), "questions": told.get("questions"), "passes": told.get("passes"),
            }
        )  # fmt: skip
    costs = [[ledger.training_cost(record, endpoint) for _, record in done] for endpoint in ledger.ENDPOINTS]
    return {
        "planned": len(listed), "finished": len(done), "tasks": tasks,
        "cost": {endpoint: _sum(values) for endpoint, values in zip(ledger.ENDPOINTS, costs, strict=True)},
    }  # fmt: skip


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is not known, or there is none."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return math.fsum(known) if known and len(known) == len(listed) else None
