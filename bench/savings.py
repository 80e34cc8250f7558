"""What an arm saves: at equal loss (what decides) and per token, in FLOPs, seconds and joules.

All savings at equal loss start from one number a seed, the logarithm of C_arm(L*) / C_reference(L*) in FLOPs. Seconds
and joules follow from it exactly, by the FLOPs a token and by what a token costs in each; their noise is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bench import ledger
from bench.design import ArmDesign, Endpoint
from bench.ledger import AllIn, Cost, Preparation
from bench.planned import PlannedCase
from bench.record import EVIDENCE, Record
from bench.stats.additive import Value, effects, exactly
from bench.stats.curve import Point, log_cost_at
from bench.stats.effect import Effect, mean_of
from bench.study import Study

SAMPLED = "not measurable at this budget: a few steps of every arm are no training"
CURVE_PURPOSES = ("reference", "variant")
"""Trainings without which a seed has no reading; claim points and controls join the curve where they are there."""

ZERO = exactly(0.0)


@dataclass(frozen=True, slots=True)
class Readings:
    """ln of the cost ratio of each seed, and the seeds that have none with the reason."""

    by_seed: Mapping[int, Value]
    dropped: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Found:
    """ln of the cost ratio in one unit, or why there is none."""

    effect: Effect | None
    reason: str | None = None
    by_seed: Mapping[int, Value] = field(default_factory=dict[int, Value])
    source: str = ""
    """Where the unit comes from, in words."""


@dataclass(frozen=True, slots=True)
class Saving:
    """One endpoint of an arm at a scale."""

    endpoint: Endpoint
    found: Found
    preparation: Preparation
    per_token_cost: Cost
    """Of the reference, in the endpoint's unit."""
    all_in: AllIn | None
    """None: what had to be prepared is not known."""
    all_in_reason: str | None


# --- ln ratio of each seed -----------------------------------------------------------------------


def readings(study: Study, arm: ArmDesign, scale: str) -> Readings:
    """ln C_arm(L*) / C_reference(L*) in FLOPs for each seed.

    In the full layout a claim arm's cost is inverted on its own curve at the loss L* that its reference's seed ended
    with at horizon 1.0, whose cost is known and never inverted. Everywhere else the arm's end loss at horizon 1.0 is
    read on the reference's curve of the same seed.
    """
    if study.design.layout != "full" or arm.role != "claim":
        return on_reference(study, arm, scale)
    reference = study.reference(arm)
    by_seed: dict[int, Value] = {}
    dropped: dict[int, str] = {}
    for seed in study.design.seeds:
        missing = _missing(study, (arm.name, reference), scale, seed)
        end = _end_at_one(study, reference, scale, seed)
        mine = _ends(study, study.trainings(arm.name, scale, seed))
        if missing:
            dropped[seed] = missing
        elif end is None or math.isinf(end.loss):
            dropped[seed] = f"{reference} has no final loss at horizon 1 to compare with"
        elif mine:
            by_seed[seed] = _minus(log_cost_at(mine, end.loss), math.log(end.cost))
    return Readings(by_seed, dropped)


def on_reference(study: Study, arm: ArmDesign, scale: str) -> Readings:
    """ln C_arm / C_reference at the loss that the arm ended with at horizon 1.0, read on the reference's curve."""
    reference = study.reference(arm)
    by_seed: dict[int, Value] = {}
    dropped: dict[int, str] = {}
    for seed in study.design.seeds:
        missing = _missing(study, (arm.name, reference), scale, seed)
        theirs = _ends(study, study.trainings(reference, scale, seed))
        own_end = _end_at_one(study, arm.name, scale, seed)
        if missing:
            dropped[seed] = missing
        elif own_end is None or not any(math.isfinite(point.loss) for point in theirs):
            dropped[seed] = f"no final loss of {arm.name} at horizon 1, or no curve of {reference}"
        else:
            by_seed[seed] = _negated(_minus(log_cost_at(theirs, own_end.loss), math.log(own_end.cost)))
    return Readings(by_seed, dropped)


def _missing(study: Study, arms: Iterable[str], scale: str, seed: int) -> str | None:
    """The first training that a seed's reading needs and lacks, in words."""
    if study.design.layout == "sample":
        return SAMPLED
    for name in arms:
        for case in study.of_seed("train", name, scale, seed):
            if case.purpose in CURVE_PURPOSES and study.finished(case) is None:
                return study.missing_words(case)
    return None


def _ends(study: Study, trainings: Iterable[Record]) -> list[Point]:
    return [point for record in trainings if (point := end_of(study, record)) is not None]


def end_of(study: Study, record: Record) -> Point | None:
    """Cost and final loss of a training; a diverged one costs what was planned for it and reaches nothing."""
    cost, loss = record.value("train_flops"), record.value("val_loss")
    if record.status == "diverged":
        planned = study.cases[record.case.id].estimate.get("train_flops")
        return Point(float(planned), math.inf) if planned else None
    return Point(cost, loss) if cost and loss is not None else None


def _end_at_one(study: Study, arm: str, scale: str, seed: int) -> Point | None:
    record = study.at("train", arm, scale, seed, 1.0)
    return end_of(study, record) if record is not None else None


def _minus(value: Value, by: float) -> Value:
    return Value(value.low - by, value.high - by, None if value.centre is None else value.centre - by)


def _negated(value: Value) -> Value:
    return Value(-value.high, -value.low, None if value.centre is None else -value.centre)


# --- noise classes -------------------------------------------------------------------------------


def noise_class(arm: ArmDesign) -> str:
    """Arms that may lend each other their noise: claims, other trained arms, and arms declared parallel."""
    if arm.parallel:
        return "parallel"
    return "claim" if arm.role == "claim" else "other"


def pooled(study: Study, by_arm: Mapping[str, Mapping[int, Value]]) -> dict[str, Effect]:
    """The mean of each arm, with noise pooled inside each class of arms that share a reference."""
    classes: dict[tuple[str, str], dict[str, Mapping[int, Value]]] = {}
    for name, values in by_arm.items():
        arm = study.arm(name)
        assert arm is not None
        classes.setdefault((study.reference(arm), noise_class(arm)), {})[name] = values
    found: dict[str, Effect] = {}
    for members in classes.values():
        found |= effects(members)
    return found


# --- seconds and joules --------------------------------------------------------------------------


def evidence_problem(measured: Iterable[Record], beside: Iterable[Record] = ()) -> str | None:
    """Why records give no evidence on time or energy: a resumed case, or several machines or commits.

    Args:
        measured: whose clocks or meters are read.
        beside: whose losses and tokens are combined with them; a resume does not harm those.
    """
    seen: set[tuple[str | None, str | None]] = {(record.env, record.commit) for record in beside}
    for record in measured:
        if record.segments > 1:
            return f"{record.case.kind} {record.case.arm} was resumed, which breaks its clock and meters"
        seen.add((record.env, record.commit))
    if len({env for env, _ in seen}) > 1:
        return "the records come from several machines"
    if len(seen) > 1:
        return "the records come from several commits"
    return None


def timing_record(study: Study, arm: ArmDesign, scale: str) -> tuple[Record | None, str | None]:
    """The interleaved timing of an arm against its reference, or why there is none."""
    cases = study.planned("timing", arm.name, scale)
    if not cases:
        return None, "no timing case was planned"
    record = study.finished(cases[0])
    if record is None:
        return None, study.missing_words(cases[0])
    if record.detail.get("against") != study.reference(arm):
        return None, f"its timing is against {record.detail.get('against')}, not {study.reference(arm)}"
    return record, None


def block_ratio(record: Record, key: str) -> Effect | None:
    """Mean ln of arm / reference a token over interleaved blocks (`key`: `s` or `j`); None where a block lacks it."""
    blocks = record.detail.get("blocks") or []
    pairs = [(block.get(f"arm_{key}"), block.get(f"reference_{key}")) for block in blocks]
    if not pairs or any(not arm or not reference or arm <= 0 or reference <= 0 for arm, reference in pairs):
        return None
    tokens, reference_tokens = _tokens_per_step(record)
    scale = math.log(reference_tokens / tokens)
    return mean_of([math.log(arm / reference) + scale for arm, reference in pairs], how="interleaved blocks")


def _tokens_per_step(record: Record) -> tuple[float, float]:
    """Tokens a step of the arm and of its reference; equal where the record does not say."""
    tokens = record.detail.get("tokens_per_step") or 1.0
    return float(tokens), float(record.detail.get("reference_tokens_per_step") or tokens)


def reference_s_per_token(record: Record) -> Cost:
    """Seconds a token of the reference in the timing blocks (geometric mean)."""
    blocks = record.detail.get("blocks") or []
    tokens = record.detail.get("reference_tokens_per_step")
    steps_s = [block.get("reference_s") for block in blocks]
    if not tokens or not steps_s or any(not step or step <= 0 for step in steps_s):
        return Cost(None, "the timing record does not say how many tokens a step of the reference holds")
    return Cost(math.exp(math.fsum(math.log(step) for step in steps_s) / len(steps_s)) / float(tokens))


def _log_flops_ratio(study: Study, arm: ArmDesign, scale: str) -> tuple[float | None, str | None]:
    mine = ledger.flops_per_token(study, arm.name, scale)
    theirs = ledger.flops_per_token(study, study.reference(arm), scale)
    if not mine.value or not theirs.value:
        return None, mine.reason or theirs.reason
    return math.log(mine.value / theirs.value), None


def time_ratio(study: Study, arm: ArmDesign, scale: str, flops: Found) -> tuple[Found, Cost]:
    """ln of the ratio of training seconds: tokens (from FLOPs) x seconds a token (from interleaved blocks)."""
    record, reason = timing_record(study, arm, scale)
    if record is None:
        return Found(None, reason), Cost(None, reason)
    per_token_cost = reference_s_per_token(record)
    problem = evidence_problem([record], _training_records(study, arm, scale))
    if problem:
        return Found(None, problem), per_token_cost
    step = block_ratio(record, "s")
    if step is None:
        return Found(None, "the timing record holds no complete blocks"), per_token_cost
    return _per_token_to_equal_loss(study, arm, scale, flops, step, "interleaved blocks"), per_token_cost


def _training_records(study: Study, arm: ArmDesign, scale: str) -> list[Record]:
    cases: list[PlannedCase] = []
    for name in (arm.name, study.reference(arm)):
        cases += study.planned("train", name, scale)
    return [record for case in cases if (record := study.finished(case)) is not None]


def _per_token_to_equal_loss(
    study: Study, arm: ArmDesign, scale: str, flops: Found, per_token: Effect, source: str
) -> Found:
    shift, reason = _log_flops_ratio(study, arm, scale)
    if flops.effect is None or shift is None:
        return Found(None, flops.reason or reason)
    return Found(
        effect=flops.effect.shifted(-shift).plus(per_token),
        by_seed={seed: _minus(value, shift - per_token.low) for seed, value in flops.by_seed.items()},
        source=source,
    )


def energy_ratio(study: Study, arm: ArmDesign, scale: str, flops: Found) -> tuple[Found, Cost]:
    """ln of the ratio of training joules: from interleaved blocks where they hold joules, else from the trainings."""
    record, _ = timing_record(study, arm, scale)
    reading = record.metrics.get("energy_j") if record is not None else None
    if record is not None and reading is not None and reading.grade in EVIDENCE:
        step = block_ratio(record, "j")
        if step is not None and not evidence_problem([record], _training_records(study, arm, scale)):
            found = _per_token_to_equal_loss(study, arm, scale, flops, step, f"interleaved blocks ({reading.grade})")
            return found, _reference_energy(study, arm, scale)
    shift, reason = _log_flops_ratio(study, arm, scale)
    if flops.effect is None or shift is None:
        return Found(None, flops.reason or reason), _reference_energy(study, arm, scale)
    found = energy_of_trainings(study, arm, scale, flops.by_seed, shift)
    return found, _reference_energy(study, arm, scale)


def _reference_energy(study: Study, arm: ArmDesign, scale: str) -> Cost:
    values: list[float] = []
    reason = "no training of the reference has finished"
    for seed in study.design.seeds:
        record = study.at("train", study.reference(arm), scale, seed, 1.0)
        if record is not None:
            cost, _ = ledger.energy_per_token(record)
            reason = cost.reason or reason
            values += [cost.value] if cost.value else []
    return Cost(math.fsum(values) / len(values)) if values else Cost(None, reason)


def energy_of_trainings(
    study: Study, arm: ArmDesign, scale: str, log_flops: Mapping[int, Value], shift: float
) -> Found:
    """ln of the ratio of training joules, paired by seed.

    Args:
        log_flops: ln of the FLOPs ratio of each seed; `ZERO` for each makes it joules a token.
        shift: ln of the ratio of FLOPs a token.
    """
    by_seed: dict[int, Value] = {}
    used: list[Record] = []
    for seed, value in log_flops.items():
        pair = [study.at("train", name, scale, seed, 1.0) for name in (arm.name, study.reference(arm))]
        records = [record for record in pair if record is not None]
        costs = [ledger.energy_per_token(record) for record in records]
        for cost, _ in costs:
            if cost.value is None:
                return Found(None, cost.reason)
        if len(records) < 2 or not costs[0][0].value or not costs[1][0].value:
            continue
        scopes = {reading.scope for _, reading in costs if reading is not None}
        if len(scopes) > 1:
            return Found(None, f"energy was measured on different scopes ({', '.join(sorted(map(str, scopes)))})")
        used += records
        by_seed[seed] = _minus(value, shift - math.log(costs[0][0].value / costs[1][0].value))
    problem = evidence_problem(used)
    if problem or not by_seed:
        return Found(None, problem or "no seed has an energy reading for both")
    return Found(effects({arm.name: by_seed})[arm.name], by_seed=by_seed, source="trainings, paired by seed")


def endpoints(study: Study, arm: ArmDesign, scale: str, flops: Found) -> dict[Endpoint, Saving]:
    """The saving of an arm in each unit, given its ln FLOPs ratio at equal loss."""
    per_token: dict[Endpoint, Cost] = {"flops": ledger.flops_per_token(study, study.reference(arm), scale)}
    found: dict[Endpoint, Found] = {"flops": flops}
    found["time"], per_token["time"] = time_ratio(study, arm, scale, flops)
    found["energy"], per_token["energy"] = energy_ratio(study, arm, scale, flops)
    budget = ledger.budget_tokens(study, study.reference(arm), scale)
    savings: dict[Endpoint, Saving] = {}
    for endpoint in ledger.ENDPOINTS:
        prepared = ledger.preparation(study, arm, scale, endpoint)
        all_in, reason = prepared.all_in(per_token[endpoint], budget)
        savings[endpoint] = Saving(endpoint, found[endpoint], prepared, per_token[endpoint], all_in, reason)
    return savings
