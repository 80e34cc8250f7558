"""Does an arm lose less accuracy than the margin? Paired by item, crossed with seeds, on tasks that could show it.

The estimand is the macro-mean over the families language modelling, question answering and natural-language inference,
each the mean of its counted tasks. A task counts only if it is sensitive: the reference is at least 5 points above
chance on it and beats its own half-compute control, both judged on a quarter of the items that the comparison leaves
out. A task at chance would always call every arm non-inferior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claimpoint import HALF
from bench.design import AccuracyDrop
from bench.itemtables import Table, Tables, group, renumbered
from bench.record import Record
from bench.stats.crossed import Crossed, Stratum, crossed_mean, items_only
from bench.stats.effect import Effect, mean_of
from bench.study import Study, StudyError

FAMILIES = {"lm": "language modelling", "qa": "question answering", "nli": "natural-language inference"}
MIN_ABOVE_CHANCE = 0.05
"""A task counts only if the reference is this far above chance."""


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
    seeds = tuple(seed for seed in study.design.seeds if seed in mine.records and seed in theirs.records)
    if not seeds:
        why = next(iter((mine.missing or theirs.missing).values()), "no task was evaluated")
        return _nothing(drop, why)
    facts = _facts([theirs.records[seed] for seed in seeds])
    tables = Tables(study)
    per_item = [tables.of(one, seeds) for one in (mine, theirs)]
    both_half = tuple(seed for seed in seeds if seed in half.records)
    if all(table is not None for table in per_item):
        by_item = _ByItem(per_item[0] or {}, per_item[1] or {}, facts, drop)
        halves = tables.of(half, both_half) if both_half else None
        rows = [seeds.index(seed) for seed in both_half]
        tasks = {task: _insensitive(by_item.theirs[task], (halves or {}).get(task), rows, facts[task], alpha)
                 for task in facts}  # fmt: skip
        return by_item.compare(tasks, seeds)
    by_seed = _BySeed(mine.records, theirs.records, half.records, facts, drop, alpha)
    return by_seed.compare(seeds)


def _nothing(drop: AccuracyDrop, why: str, tasks: Mapping[str, str] | None = None) -> Comparison:
    families = {family: Part((), None, _family_why(family, tasks or {}, {})) for family in FAMILIES}
    return Comparison(None, None, -drop.less_than, families, tasks or {}, (), why)


def _facts(records: Sequence[Record]) -> dict[str, TaskFacts]:
    tasks: dict[str, Any] = records[0].detail.get("tasks") or {}
    return {name: TaskFacts(str(task.get("family")), float(task.get("chance") or 0.0)) for name, task in tasks.items()}


def _family_why(family: str, tasks: Mapping[str, str], facts: Mapping[str, TaskFacts]) -> str:
    mine = [f"{task}: {why}" for task, why in tasks.items() if why and task in facts and facts[task].family == family]
    return "; ".join(mine) or f"no task of {FAMILIES.get(family, family)} was evaluated"


def _weights(tasks: Mapping[str, str], facts: Mapping[str, TaskFacts]) -> dict[str, dict[str, float]]:
    """family -> counted task -> its weight in the family's mean."""
    found: dict[str, dict[str, float]] = {}
    for task, why in tasks.items():
        if not why:
            found.setdefault(facts[task].family, {})[task] = 0.0
    return {family: dict.fromkeys(members, 1 / len(members)) for family, members in found.items()}


# --- sensitivity ---------------------------------------------------------------------------------


def _insensitive(reference: Table, half: Table | None, rows: Sequence[int], facts: TaskFacts, alpha: float) -> str:
    """Why a task does not count; empty where it does. For these very models: seeds fixed, items random."""
    assay = reference.is_assay
    clusters = renumbered(reference.clusters, assay)
    above = items_only([Stratum(reference.scores[:, assay] - facts.chance, 1.0, clusters)])
    if why := _at_chance(above, alpha):
        return why
    if half is None:
        return "there is no half-compute control to tell whether it sees a difference"
    gained = items_only([Stratum(reference.scores[rows][:, assay] - half.scores[:, assay], 1.0, clusters)])
    if gained.lower(alpha) <= 0:
        return f"it cannot tell the reference from its half-compute control ({100 * gained.low:+.1f} points)"
    return ""


def _at_chance(above: Effect, alpha: float) -> str:
    if above.low < MIN_ABOVE_CHANCE:
        return f"the reference scores {100 * above.low:+.1f} points from chance, at least +5 is needed"
    if above.lower(alpha) <= 0:
        return f"the reference is not surely above chance ({100 * above.low:+.1f} points)"
    return ""


# --- by item -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ByItem:
    mine: Mapping[str, Table]
    theirs: Mapping[str, Table]
    facts: Mapping[str, TaskFacts]
    drop: AccuracyDrop

    def compare(self, tasks: Mapping[str, str], seeds: tuple[int, ...]) -> Comparison:
        weights = _weights(tasks, self.facts)
        if not weights:
            return _nothing(self.drop, "no task counts: " + "; ".join(f"{task}: {why}" for task, why in tasks.items()),
                            tasks)  # fmt: skip
        families = {
            family: Part(tuple(weights[family]), crossed_mean(self._strata(weights[family], 1.0)).effect)
            if family in weights else Part((), None, _family_why(family, tasks, self.facts))
            for family in dict.fromkeys([*FAMILIES, *weights])
        }  # fmt: skip
        overall = {task: weight / len(weights) for members in weights.values() for task, weight in members.items()}
        crossed = crossed_mean(self._strata(overall, 1.0))
        relative = self.drop.kind == "relative"
        tested = crossed_mean(self._strata(overall, 1 - self.drop.less_than)).effect if relative else crossed.effect
        return Comparison(
            difference=crossed.effect, tested=tested, floor=0.0 if relative else -self.drop.less_than,
            families=families, tasks=tasks, seeds=seeds, crossed=crossed, bits=self._bits(overall),
        )  # fmt: skip

    def _strata(self, weights: Mapping[str, float], of_reference: float) -> list[Stratum]:
        return [
            Stratum(
                (self.mine[task].scores - of_reference * self.theirs[task].scores)[:, ~self.theirs[task].is_assay],
                weight,
                renumbered(self.theirs[task].clusters, ~self.theirs[task].is_assay),
            )
            for task, weight in weights.items()
        ]

    def _bits(self, weights: Mapping[str, float]) -> Effect | None:
        strata = [
            Stratum(self.mine[task].bits - self.theirs[task].bits, weight, self.theirs[task].clusters)
            for task, weight in weights.items()
        ]
        if any(np.isnan(stratum.differences).any() for stratum in strata):
            return None
        return crossed_mean(strata).effect


# --- by seed, where items were not kept ----------------------------------------------------------


@dataclass(frozen=True)
class _BySeed:
    mine: Mapping[int, Record]
    theirs: Mapping[int, Record]
    half: Mapping[int, Record]
    facts: Mapping[str, TaskFacts]
    drop: AccuracyDrop
    alpha: float

    def compare(self, seeds: tuple[int, ...]) -> Comparison:
        tasks = {task: self._insensitive(task, seeds) for task in self.facts}
        weights = _weights(tasks, self.facts)
        if not weights:
            return _nothing(self.drop, "no task counts: " + "; ".join(f"{task}: {why}" for task, why in tasks.items()),
                            tasks)  # fmt: skip
        families = {
            family: Part(tuple(weights[family]), self._mean(weights[family], seeds, 1.0))
            if family in weights else Part((), None, _family_why(family, tasks, self.facts))
            for family in dict.fromkeys([*FAMILIES, *weights])
        }  # fmt: skip
        overall = {task: weight / len(weights) for members in weights.values() for task, weight in members.items()}
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
                    weight * (self._score(self.mine[seed], task) - of_reference * self._score(self.theirs[seed], task))
                    for task, weight in weights.items()
                )
                for seed in seeds
            ]
        )

    @staticmethod
    def _score(record: Record, task: str) -> float:
        value = record.value(f"accuracy/{task}")
        if value is None:
            raise StudyError(f"case {record.case.id}: an evaluation without accuracy/{task}; hint: evaluate it again")
        return value

    def _insensitive(self, task: str, seeds: Sequence[int]) -> str:
        above = mean_of([self._score(self.theirs[seed], task) - self.facts[task].chance for seed in seeds])
        if why := _at_chance(above, self.alpha):
            return why
        both = [seed for seed in seeds if seed in self.half]
        if not both:
            return "there is no half-compute control to tell whether it sees a difference"
        gained = mean_of([self._score(self.theirs[seed], task) - self._score(self.half[seed], task) for seed in both])
        if gained.lower(self.alpha) <= 0:
            return f"it cannot tell the reference from its half-compute control ({100 * gained.low:+.1f} points)"
        return ""
