"""Does an arm lose less accuracy than the margin? Paired by item, crossed with seeds, on tasks that could show it.

The estimand is the macro-mean over the families language modelling, question answering and natural-language inference,
each the mean of its counted tasks. A task counts only if it is sensitive: the reference is at least 5 points above
chance on it and beats its own half-compute control, both judged on a quarter of the items that the comparison leaves
out. A task at chance would always call every arm non-inferior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claimpoint import HALF
from bench.design import AccuracyDrop
from bench.itemtables import Group, Table, Tables, group, renumbered
from bench.record import Record
from bench.stats.crossed import Crossed, Stratum, crossed_mean, items_only
from bench.stats.effect import Effect, mean_of
from bench.study import Study, StudyError
from bench.words import signed

FAMILIES = {"lm": "language modelling", "qa": "question answering", "nli": "natural-language inference"}
MIN_ABOVE_CHANCE = 0.05
"""A task counts only if the reference is this far above chance."""
NO_HALF = "there is no half-compute control to tell whether it sees a difference"


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a task is."""

    family: str
    chance: float


@dataclass(frozen=True, slots=True)
class Part:
    """A mean difference over some tasks."""

    tasks: tuple[str, ...]
    effect: Effect | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm's accuracy against its reference's."""

    difference: Effect | None
    """Arm minus reference, macro-mean."""
    tested: Effect | None
    """What must lie above `floor`: the difference, or arm - (1 - margin) x reference for a relative margin."""
    floor: float
    families: Mapping[str, Part]
    tasks: Mapping[str, str]
    """task -> why it does not count (empty: it counts)."""
    seeds: tuple[int, ...]
    reason: str | None = None
    """Why there is no comparison."""
    crossed: Crossed | None = None
    bits: Effect | None = None
    """Bits a byte of the correct choice, arm minus reference."""
    note: str = ""
    """How it was computed, where that is not by items."""


def compare(study: Study, arm: tuple[str, float], reference: tuple[str, float], scale: str, alpha: float) -> Comparison:
    """Compare (arm, horizon) with (reference, horizon).

    Raises:
        StudyError: two evaluations of one task hold different items.
    """
    drop = study.design.hypothesis.accuracy_drop
    mine, theirs = group(study, arm[0], scale, arm[1]), group(study, reference[0], scale, reference[1])
    half = group(study, reference[0], scale, HALF)
    parts = sorted(mine.parts & theirs.parts)
    seeds = tuple(seed for seed in study.design.seeds if seed in mine.seeds(parts) & theirs.seeds(parts))
    if not parts or not seeds:
        why = next(iter({**mine.missing, **theirs.missing}.values()), "no task was evaluated")
        return _nothing(drop, why)
    rows = [_merged(found, parts, seeds) for found in (mine, theirs)]
    facts = _facts(rows)
    tables = Tables(study)
    per_item = [tables.of(one, parts, seeds) for one in (mine, theirs)]
    both_half = tuple(seed for seed in seeds if seed in half.seeds(parts))
    lacking = _lacking(rows, facts) | _without_result(parts, mine, theirs)
    if all(table is not None for table in per_item):
        by_item = _ByItem(per_item[0] or {}, per_item[1] or {}, facts, drop, alpha)
        halves = tables.of(half, parts, both_half) if both_half else None
        known = [seeds.index(seed) for seed in both_half]
        tasks = {task: _insensitive(by_item.theirs[task], (halves or {}).get(task), known, facts[task], alpha)
                 for task in facts}  # fmt: skip
        return by_item.compare(tasks | lacking, seeds)
    of_half = dict(zip(both_half, _merged(half, parts, both_half), strict=True))
    by_arm = [dict(zip(seeds, found, strict=True)) for found in rows]
    by_seed = _BySeed(by_arm[0], by_arm[1], of_half, facts, drop, alpha)
    return by_seed.compare(seeds, lacking)


@dataclass(frozen=True, slots=True)
class Scored:
    """What one model scored on all tasks: its evaluations put together."""

    accuracy: Mapping[str, float]
    facts: Mapping[str, TaskFacts]
    missing: Mapping[str, str]


def _merged(found: Group, parts: Sequence[str], seeds: Sequence[int]) -> list[Scored]:
    return [_scored([found.records[seed][part] for part in parts]) for seed in seeds]


def _scored(records: Sequence[Record]) -> Scored:
    accuracy: dict[str, float] = {}
    facts: dict[str, TaskFacts] = {}
    missing: dict[str, str] = {}
    for record in records:
        tasks: dict[str, Any] = record.detail.get("tasks") or {}
        for name, task in tasks.items():
            value = record.value(f"accuracy/{name}")
            if value is None:
                raise StudyError(
                    f"case {record.case.id}: an evaluation without accuracy/{name}; hint: evaluate it again"
                )
            accuracy[name] = value
            facts[name] = TaskFacts(str(task["family"]), float(task["chance"]))
        for metric, found in record.metrics.items():
            if metric.startswith("accuracy/") and found.value is None:
                missing[metric.removeprefix("accuracy/")] = found.reason or "not measured"
    return Scored(accuracy, facts, missing)


def _facts(rows: Sequence[Sequence[Scored]]) -> dict[str, TaskFacts]:
    """Of the tasks that every compared model was scored on."""
    every = [scored for side in rows for scored in side]
    return {name: fact for name, fact in every[0].facts.items() if all(name in one.facts for one in every)}


def _lacking(rows: Sequence[Sequence[Scored]], facts: Mapping[str, TaskFacts]) -> dict[str, str]:
    """Tasks that some model was not scored on -> why."""
    every = [scored for side in rows for scored in side]
    names = {name for one in every for name in (*one.facts, *one.missing)} - facts.keys()
    found = {name: why for one in every for name, why in one.missing.items()}
    return {name: found.get(name, "not every compared model was scored on it") for name in sorted(names)}


def _without_result(parts: Sequence[str], *groups: Group) -> dict[str, str]:
    """Fine-tunings that no model of an arm came to the end of -> why."""
    failed = {part: why for one in groups for part, why in one.missing.items() if part not in parts}
    return {part.removeprefix("finetune "): why for part, why in failed.items()}


def _nothing(drop: AccuracyDrop, why: str, tasks: Mapping[str, str] | None = None) -> Comparison:
    families = {family: Part((), None, _family_why(family, tasks or {}, {})) for family in FAMILIES}
    return Comparison(None, None, -drop.less_than, families, tasks or {}, (), why)


def _none_counts(drop: AccuracyDrop, tasks: Mapping[str, str]) -> Comparison:
    return _nothing(drop, "no task counts: " + "; ".join(f"{task}: {why}" for task, why in tasks.items()), tasks)


def _family_why(family: str, tasks: Mapping[str, str], facts: Mapping[str, TaskFacts]) -> str:
    mine = [f"{task}: {why}" for task, why in tasks.items() if why and task in facts and facts[task].family == family]
    unknown = [f"{task}: {why}" for task, why in tasks.items() if why and task not in facts]
    return "; ".join(mine or unknown) or f"no task of {FAMILIES.get(family, family)} was evaluated"


def _weights(tasks: Mapping[str, str], facts: Mapping[str, TaskFacts]) -> dict[str, dict[str, float]]:
    """family -> counted task -> its weight in the family's mean."""
    found: dict[str, dict[str, float]] = {}
    for task, why in tasks.items():
        if not why:
            found.setdefault(facts[task].family, {})[task] = 0.0
    return {family: dict.fromkeys(members, 1 / len(members)) for family, members in found.items()}


def _overall(weights: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Counted task -> its weight in the mean over families."""
    return {task: weight / len(weights) for members in weights.values() for task, weight in members.items()}


def _parts(
    tasks: Mapping[str, str],
    weights: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, TaskFacts],
    mean: Callable[[Mapping[str, float]], Effect | None],
) -> dict[str, Part]:
    """Every family's mean difference over its counted tasks, or why it has none."""
    return {
        family: Part(tuple(weights[family]), mean(weights[family]))
        if family in weights
        else Part((), None, _family_why(family, tasks, facts))
        for family in dict.fromkeys([*FAMILIES, *weights])
    }


# --- sensitivity ---------------------------------------------------------------------------------


def _insensitive(reference: Table, half: Table | None, rows: Sequence[int], facts: TaskFacts, alpha: float) -> str:
    """Why a task does not count; empty where it does. For these very models: seeds fixed, items random."""
    assay = reference.is_assay
    if not assay.any() or assay.all():
        return f"{reference.units} are too few to set a quarter apart and compare the rest (raise evaluate.limit)"
    clusters = renumbered(reference.clusters, assay)
    above = items_only([Stratum(reference.scores[:, assay] - facts.chance, 1.0, clusters)])
    if why := _at_chance(above, alpha):
        return why
    if half is None:
        return NO_HALF
    gained = items_only([Stratum(reference.scores[rows][:, assay] - half.scores[:, assay], 1.0, clusters)])
    return _blind(gained, alpha)


def _at_chance(above: Effect, alpha: float) -> str:
    if above.low < MIN_ABOVE_CHANCE:
        side = "below" if above.low < 0 else "above"
        least = f"{100 * MIN_ABOVE_CHANCE:g}"
        return f"the reference scores {100 * abs(above.low):.1f} points {side} chance, at least {least} above is needed"
    if above.lower(alpha) <= 0:
        return f"the reference is not surely above chance ({signed(100 * above.low, 1)} points)"
    return ""


def _blind(gained: Effect, alpha: float) -> str:
    """Why a task does not see a difference that is there: what the reference gains over its half-compute control."""
    if gained.lower(alpha) <= 0:
        return f"it cannot tell the reference from its half-compute control ({signed(100 * gained.low, 1)} points)"
    return ""


# --- by item -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ByItem:
    mine: Mapping[str, Table]
    theirs: Mapping[str, Table]
    facts: Mapping[str, TaskFacts]
    drop: AccuracyDrop
    alpha: float

    def compare(self, tasks: Mapping[str, str], seeds: tuple[int, ...]) -> Comparison:
        weights = _weights(tasks, self.facts)
        if not weights:
            return _none_counts(self.drop, tasks)
        families = _parts(tasks, weights, self.facts, lambda members: self._mean(members, 1.0).effect)
        overall = _overall(weights)
        crossed = self._mean(overall, 1.0)
        relative = self.drop.kind == "relative"
        tested = self._mean(overall, 1 - self.drop.less_than).effect if relative else crossed.effect
        return Comparison(
            difference=crossed.effect, tested=tested, floor=0.0 if relative else -self.drop.less_than,
            families=families, tasks=tasks, seeds=seeds, crossed=crossed, bits=self._bits(overall),
        )  # fmt: skip

    def _mean(self, weights: Mapping[str, float], of_reference: float) -> Crossed:
        strata = [
            Stratum(
                (self.mine[task].scores - of_reference * self.theirs[task].scores)[:, ~self.theirs[task].is_assay],
                weight,
                renumbered(self.theirs[task].clusters, ~self.theirs[task].is_assay),
            )
            for task, weight in weights.items()
        ]
        return crossed_mean(strata, self.alpha)

    def _bits(self, weights: Mapping[str, float]) -> Effect | None:
        strata = [
            Stratum(self.mine[task].bits - self.theirs[task].bits, weight, self.theirs[task].clusters)
            for task, weight in weights.items()
        ]
        if any(np.isnan(stratum.differences).any() for stratum in strata):
            return None
        return crossed_mean(strata, self.alpha).effect


# --- by seed, where items were not kept ----------------------------------------------------------


@dataclass(frozen=True)
class _BySeed:
    mine: Mapping[int, Scored]
    theirs: Mapping[int, Scored]
    half: Mapping[int, Scored]
    facts: Mapping[str, TaskFacts]
    drop: AccuracyDrop
    alpha: float

    def compare(self, seeds: tuple[int, ...], lacking: Mapping[str, str]) -> Comparison:
        tasks = {task: self._insensitive(task, seeds) for task in self.facts} | dict(lacking)
        weights = _weights(tasks, self.facts)
        if not weights:
            return _none_counts(self.drop, tasks)
        families = _parts(tasks, weights, self.facts, lambda members: self._mean(members, seeds, 1.0))
        overall = _overall(weights)
        difference = self._mean(overall, seeds, 1.0)
        relative = self.drop.kind == "relative"
        return Comparison(
            difference=difference,
            tested=self._mean(overall, seeds, 1 - self.drop.less_than) if relative else difference,
            floor=0.0 if relative else -self.drop.less_than, families=families, tasks=tasks, seeds=seeds,
            note="results of single items were not kept: compared by seed alone, tasks chosen on the same results",
        )  # fmt: skip

    def _mean(self, weights: Mapping[str, float], seeds: Sequence[int], of_reference: float) -> Effect:
        return mean_of(
            [
                sum(
                    weight * (self.mine[seed].accuracy[task] - of_reference * self.theirs[seed].accuracy[task])
                    for task, weight in weights.items()
                )
                for seed in seeds
            ]
        )

    def _insensitive(self, task: str, seeds: Sequence[int]) -> str:
        above = mean_of([self.theirs[seed].accuracy[task] - self.facts[task].chance for seed in seeds])
        if why := _at_chance(above, self.alpha):
            return why
        both = [seed for seed in seeds if seed in self.half and task in self.half[seed].accuracy]
        if not both:
            return NO_HALF
        gained = mean_of([self.theirs[seed].accuracy[task] - self.half[seed].accuracy[task] for seed in both])
        return _blind(gained, self.alpha)
