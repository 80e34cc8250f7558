"""What each arm cost in full: its trainings, and everything that had to be made for them.

An arm is charged for the cases that its trainings needed and its reference's did not: its own data steps, a teacher, a
draft. What both needed (the corpus, the plain shards) is listed and charged to neither. Preparation is charged once
per corpus and recipe, in full, at the *claimed* training budget; otherwise ten seconds of hashing would refute
deduplication at toy budgets by accounting taste. Tuning trials are shown outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from bench.design import ArmDesign, Endpoint
from bench.planned import PlannedCase
from bench.record import EVIDENCE, Reading, Record
from bench.study import Study

ENDPOINTS: tuple[Endpoint, ...] = ("flops", "time", "energy")
_COSTS: dict[Endpoint, dict[str, str]] = {
    "flops": {"prepare": "prepare_flops", "train": "train_flops", "finetune": "train_flops"},
    "time": {"prepare": "prepare_time_s", "train": "train_time_s", "finetune": "train_time_s"},
    "energy": {"prepare": "energy_j", "train": "energy_j", "finetune": "energy_j"},
}
"""endpoint -> kind of case -> the metric that holds its cost."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount, or the reason why it is not known."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """One case that an arm has to pay for beside its own training."""

    case: str
    label: str
    costs: dict[Endpoint, Cost]


@dataclass(frozen=True, slots=True)
class AllIn:
    """Turns a ratio of training costs into a saving with preparation, at a budget."""

    training: float
    """The reference's training cost at the budget."""
    arm: float
    """Preparation of the arm that its reference did not need."""
    reference: float
    """Preparation of the reference that the arm did not need."""

    def saving(self, log_ratio: float) -> float:
        """1 - (ratio x training + arm) / (training + reference); falls as the ratio grows."""
        return 1 - (ratio(log_ratio) * self.training + self.arm) / (self.training + self.reference)

    def log_ratio(self, saving: float) -> float:
        """The ratio of training costs at which the saving is reached; -inf where none is small enough."""
        allowed = (1 - saving) * (self.training + self.reference) - self.arm
        return math.log(allowed / self.training) if allowed > 0 else -math.inf


TRAINING_ALONE = AllIn(training=1.0, arm=0.0, reference=0.0)


def ratio(log_ratio: float) -> float:
    """exp, infinite where it would overflow."""
    return math.exp(log_ratio) if log_ratio < 700 else math.inf


def charges(study: Study, arm: str, other: str, scale: str) -> list[Charge]:
    """What the trainings of `arm` needed and those of `other` did not."""
    mine, theirs = study.needed(arm, scale), study.needed(other, scale)
    return [_charge(study, case) for key, case in mine.items() if key not in theirs]


def shared(study: Study, arm: str, other: str, scale: str) -> list[Charge]:
    """What the trainings of both needed."""
    theirs = study.needed(other, scale)
    return [_charge(study, case) for key, case in study.needed(arm, scale).items() if key in theirs]


def training_cost(record: Record, endpoint: Endpoint) -> float | None:
    """What one training (or trial) cost; None where that is not known, or modelled."""
    found = record.metrics.get(_COSTS[endpoint]["train"])
    if found is None or found.value is None or (endpoint == "energy" and found.grade not in EVIDENCE):
        return None
    return float(found.value)


def _charge(study: Study, case: PlannedCase) -> Charge:
    record = study.records.get(case.id)
    return Charge(case.id, case.label, {endpoint: _cost(study, case, record, endpoint) for endpoint in ENDPOINTS})


def _cost(study: Study, case: PlannedCase, record: Record | None, endpoint: Endpoint) -> Cost:
    if record is None or record.status == "failed":
        return Cost(None, study.missing_words(case))
    metric = _COSTS[endpoint].get(case.kind)
    found = record.metrics.get(metric) if metric else None
    if found is None or found.value is None:
        return Cost(None, f"{case.label}: {found.reason if found else f'its record holds no {metric}'}")
    if endpoint == "energy" and found.grade not in EVIDENCE:
        return Cost(None, f"{case.label}: its energy is {found.grade}, which is no evidence")
    return Cost(float(found.value))


def total(listed: Iterable[Charge], endpoint: Endpoint, seeds: Iterable[int], study: Study) -> Cost:
    """The sum of charges; of cases that exist once a seed, the mean over the seeds."""
    n_seeds = max(1, len(set(seeds)))
    amount = 0.0
    for charge in listed:
        cost = charge.costs[endpoint]
        if cost.value is None:
            return cost
        amount += cost.value / (n_seeds if study.cases[charge.case].seed is not None else 1)
    return Cost(amount)


def budget_tokens(study: Study, reference: str, scale: str) -> float | None:
    """Training tokens of the reference that preparation is charged against: the claimed budget, or its longest run."""
    if study.design.hypothesis.budget is not None:
        return float(study.design.hypothesis.budget)
    tokens = [
        record.detail.get("tokens")
        for case in study.planned("train", reference, scale)
        if (record := study.finished(case)) is not None
    ]
    known = [float(one) for one in tokens if isinstance(one, int | float)]
    return max(known) if known else None


@dataclass(frozen=True, slots=True)
class Preparation:
    """What an arm and its reference each had to prepare for themselves, in one unit."""

    arm: Cost
    reference: Cost

    def all_in(self, per_token: Cost, budget: float | None) -> tuple[AllIn | None, str | None]:
        """The conversion to all-in savings, or why there is none."""
        for cost in (self.arm, self.reference):
            if cost.value is None:
                return None, cost.reason
        if self.arm.value == self.reference.value == 0:
            return TRAINING_ALONE, None
        if per_token.value is None or budget is None:
            return None, per_token.reason or "the training budget is not known"
        return AllIn(per_token.value * budget, self.arm.value or 0.0, self.reference.value or 0.0), None

    def break_even_tokens(self, per_token: Cost, log_ratio: float | None) -> tuple[float | None, str | None]:
        """Training tokens of the reference from which the arm's preparation has paid for itself, or why never."""
        if self.arm.value is None or self.reference.value is None:
            return None, self.arm.reason or self.reference.reason
        extra = self.arm.value - self.reference.value
        if log_ratio is None:
            return None, "the saving of training itself is not known"
        if log_ratio >= 0:
            return None, "never: training itself saves nothing"
        if extra <= 0:
            return 0.0, None
        if not per_token.value:
            return None, per_token.reason or "the reference's cost a token is not known"
        return extra / (per_token.value * (1 - math.exp(log_ratio))), None


def preparation(study: Study, arm: ArmDesign, scale: str, endpoint: Endpoint) -> Preparation:
    """What the arm and its reference prepared for themselves."""
    reference = study.reference(arm)
    return Preparation(
        arm=total(charges(study, arm.name, reference, scale), endpoint, study.design.seeds, study),
        reference=total(charges(study, reference, arm.name, scale), endpoint, study.design.seeds, study),
    )


# --- what one training cost ----------------------------------------------------------------------


def flops_per_token(study: Study, arm: str, scale: str) -> Cost:
    """Training FLOPs a token as executed: the records' mean, else the plan's."""
    found = [
        value
        for case in study.planned("train", arm, scale)
        if (record := study.finished(case)) is not None and (value := record.value("train_flops_per_token"))
    ]
    if found:
        return Cost(fmean(found))
    planned = study.facts.get(arm, {}).get(scale, {}).get("train_flops_per_token")
    return Cost(float(planned)) if planned else Cost(None, f"FLOPs a token of {arm}: neither counted nor planned")


def energy_per_token(record: Record) -> tuple[Cost, Reading | None]:
    """Gross joules a training token with the reading they come from, or why they are no evidence."""
    found, tokens = record.metrics.get("energy_j"), record.detail.get("tokens")
    if found is None or found.value is None or not tokens:
        return Cost(None, found.reason if found and found.reason else "no energy was recorded"), found
    if found.grade not in EVIDENCE:
        return Cost(None, f"energy is {found.grade}: an estimate from time is no evidence on energy"), found
    return Cost(float(found.value) / float(tokens)), found


def mean_training_costs(study: Study, arm: str, scale: str) -> dict[Endpoint, Cost]:
    """Mean cost of one training at horizon 1.0 over the seeds; descriptive."""
    records = [
        record for seed in study.design.seeds if (record := study.at("train", arm, scale, seed, 1.0)) is not None
    ]
    found: dict[Endpoint, Cost] = {}
    for endpoint in ENDPOINTS:
        values = [value for record in records if (value := record.value(_COSTS[endpoint]["train"])) is not None]
        found[endpoint] = Cost(fmean(values)) if values else Cost(None, "no training at horizon 1 holds it")
    return found
