"""Whether every arm was tuned alike, and what that took: read from the records, not from what the suite says.

Tuning alone can be worth more than the effect under test, so that a variant which had more trials than its baseline
has shown nothing. What trials cost is listed apart: it is the cost of the study, not of the technique.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench import ledger
from bench.planned import PlannedCase
from bench.record import Record
from bench.study import Study
from bench.tuning import Choice, Trial, by_setting, choose, trial_of
from bench.words import several


def unequal(study: Study, scale: str) -> str | None:
    """Why the arms of a scale cannot be called tuned alike; None where every trained arm had the same trials."""
    counts: dict[str, int] = {}
    for arm in trained(study):
        planned = study.trials(arm, scale)
        done = [case for case in planned if study.finished(case) is not None]
        if not planned:
            return f"{arm} had no tuning trials"
        if len(done) < len(planned):
            return f"{arm} has {len(done)} of {several(len(planned), 'trial')} finished"
        counts[arm] = len(done)
        wrong = next((why for record in _trainings(study, arm, scale) if (why := _not_as_tried(study, record))), None)
        if wrong:
            return wrong
    most, least = max(counts, key=lambda arm: counts[arm]), min(counts, key=lambda arm: counts[arm])
    if counts[most] != counts[least]:
        return f"{most} had {several(counts[most], 'trial')}, {least} {counts[least]}"
    return None


def trained(study: Study) -> list[str]:
    """The baseline and every arm that is trained to the end."""
    return [study.design.baseline, *(arm.name for arm in study.design.arms if arm.role != "timing")]


def _trainings(study: Study, arm: str, scale: str) -> list[Record]:
    cases = study.planned("train", arm, scale)
    found = (study.finished(case) for case in cases)
    return [record for record in found if record is not None and record.status in ("ok", "diverged")]


def _not_as_tried(study: Study, record: Record) -> str | None:
    """Why a training did not use the best of its arm's finished trials; None where it did."""
    tuning: dict[str, Any] = record.detail.get("tuning") or {}
    case = study.cases[record.case.id]
    if not tuning:
        return f"{case.label} does not say which trial it took its setting from"
    mine = {trial.case: trial for trial in _trials(study, case.arm, case.scale or "", str(tuning.get("metric")))}
    if {str(one.get("case")) for one in tuning.get("trials") or []} != set(mine):
        return f"{case.label} chose among other trials than its arm's"
    best = choose(mine.values())
    if best is None or dict(best.setting) != tuning.get("chosen"):
        return f"{case.label} was not trained at the best setting of its trials"
    return None


def _trials(study: Study, arm: str, scale: str, metric: str) -> list[Trial]:
    finished = (study.finished(case) for case in study.trials(arm, scale))
    return [trial_of(record, metric) for record in finished if record is not None]


# --- as the verdict holds it ---------------------------------------------------------------------


def describe(study: Study, scale: str) -> dict[str, Any] | None:
    """Each arm's grid, choice and cost at a scale; None where nothing was tuned."""
    arms = {arm: _describe(study, arm, scale) for arm in trained(study) if study.trials(arm, scale)}
    if not arms:
        return None
    why = unequal(study, scale)
    return {"equal": why is None, "why": why or "every arm had the same number of trials", "arms": arms}


def _describe(study: Study, arm: str, scale: str) -> dict[str, Any]:
    cases = study.trials(arm, scale)
    metric = next(
        (str(case.tuning["metric"]) for case in study.planned("train", arm, scale) if case.tuning), "val_loss"
    )
    found = _trials(study, arm, scale, metric)
    choice = choose(found)
    return {
        "planned": len(cases), "finished": len(found), "metric": metric, **_choice(choice),
        "grid": [{**dict(setting), "loss": loss} for setting, loss in by_setting(found).items()],
        "trials": [{"case": one.case, "seed": one.seed, **one.setting, "loss": one.loss} for one in found],
        "cost": _cost(study, (record for case in _paid(study, cases) if (record := study.finished(case)) is not None)),
    }  # fmt: skip


def _paid(study: Study, trials: Iterable[PlannedCase]) -> Iterable[PlannedCase]:
    """The trials, and what they start or learn from."""
    listed = {case.id: case for case in trials}
    for case in tuple(listed.values()):
        parents = (study.cases[parent] for parent in case.parents)
        listed |= {parent.id: parent for parent in parents if parent.is_tuning}
    return listed.values()


def _choice(choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {"chosen": None, "loss": None, "edges": {}}
    return {"chosen": dict(choice.setting), "loss": choice.loss, "edges": dict(choice.edges)}


def _cost(study: Study, records: Iterable[Record]) -> dict[str, Any]:
    """What the trials cost in all; a diverged one stopped early and is counted with what was planned for it."""
    total: dict[str, list[float | None]] = {endpoint: [] for endpoint in ledger.ENDPOINTS}
    for record in records:
        for endpoint in ledger.ENDPOINTS:
            value = ledger.training_cost(record, endpoint)
            if value is None and endpoint == "flops" and record.status == "diverged":
                value = study.cases[record.case.id].estimate.get("train_flops")
            total[endpoint].append(value)
    return {
        endpoint: math.fsum(value for value in values if value is not None) if values and None not in values else None
        for endpoint, values in total.items()
    }
