"""Per-item scores of evaluations as matrices, seed by item, with every model answering the same items in one order."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bench.plausible import contradicts_items
from bench.record import RUN_AGAIN, Record
from bench.study import Study, StudyError
from bench.words import several

ASSAY_SHARE = 4
"""One item in this many tells whether a task is sensitive, and takes no part in the comparison of arms."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """One task: the scores of one group of models (same arm and horizon), with the items in a fixed order."""

    scores: Floats
    """[seed, item]"""
    bits: Floats
    """Bits a byte of the correct choice, [seed, item]."""
    clusters: NDArray[np.int64] | None
    is_assay: NDArray[np.bool_]

    @property
    def units(self) -> str:
        """What is drawn at random, in words: `4 passages` or, where items stand alone, `30 items`."""
        if self.clusters is None:
            return several(len(self.is_assay), "item")
        return several(len(np.unique(self.clusters)), "passage")


@dataclass(frozen=True)
class Group:
    """Evaluations of one arm at one horizon: seed -> what was evaluated (`evaluate`, `finetune vitaminc`) -> record."""

    records: Mapping[int, Mapping[str, Record]]
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """What has no result -> why, of the first seed that lacks it."""

    @property
    def parts(self) -> frozenset[str]:
        """What some seed has a result of."""
        return frozenset(part for found in self.records.values() for part in found)

    def seeds(self, parts: Iterable[str]) -> frozenset[int]:
        """Seeds that have a result of each part."""
        wanted = set(parts)
        return frozenset(seed for seed, found in self.records.items() if wanted <= found.keys())


def group(study: Study, arm: str, scale: str, horizon: float) -> Group:
    """The finished evaluations of an arm at a horizon."""
    records: dict[int, dict[str, Record]] = {}
    missing: dict[str, str] = {}
    for seed in study.design.seeds:
        for case in study.evaluations(arm, scale, seed, horizon):
            part = " ".join([case.kind, *([str(case.spec.get("task"))] if case.kind == "finetune" else [])])
            record = study.finished(case)
            if record is not None and record.status == "ok":
                records.setdefault(seed, {})[part] = record
            else:
                missing.setdefault(part, study.missing_words(case))
    if not records and not missing:
        missing["evaluate"] = f"{arm} x{horizon:g} was not evaluated"
    return Group(records, missing)


class Tables:
    """Reads the item tables of groups of evaluations, checking that all answer the same items."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._order: dict[str, list[str]] = {}
        self._passages: dict[str, tuple[NDArray[np.int64] | None, NDArray[np.bool_]]] = {}

    def of(self, group: Group, parts: Sequence[str], seeds: Sequence[int]) -> dict[str, Table] | None:
        """task -> scores of these seeds; None where an item table was not kept."""
        rows: dict[str, list[tuple[Floats, Floats]]] = {}
        for seed, part in product(seeds, parts):
            record = group.records[seed][part]
            if not record.detail.get("tasks"):
                continue  # nothing of it could be had
            items = self._study.items(record)
            if items is None:
                return None
            tasks = [str(name) for name in items.task]
            names = np.asarray(tasks, dtype=object)
            scores = np.asarray(items.score, dtype=np.float64)
            bits = np.asarray(items.choice_bits_per_byte, dtype=np.float64)
            for task in dict.fromkeys(tasks):
                where = np.flatnonzero(names == task)
                if wrong := contradicts_items(record, task, float(scores[where].mean())):
                    raise StudyError(f"case {record.case.id}: {wrong}; {RUN_AGAIN}")
                order = self._ordered(task, where, items.item, items.passage, record)
                rows.setdefault(task, []).append((scores[order], bits[order]))
        if any(len(found) != len(seeds) for found in rows.values()):
            return None
        return {
            task: Table(np.stack([one for one, _ in found]), np.stack([two for _, two in found]), *self._passages[task])
            for task, found in rows.items()
        }

    def _ordered(
        self, task: str, where: NDArray[np.intp], item: Sequence[str], passage: Sequence[str | None], record: Record
    ) -> NDArray[np.intp]:
        ids = [str(item[n]) for n in where]
        known = self._order.setdefault(task, ids)
        if task not in self._passages:
            self._passages[task] = _passages([passage[n] for n in where], ids)
        if ids == known:
            return where
        place = {name: n for n, name in zip(where, ids, strict=True)}
        if len(place) != len(ids) or place.keys() != set(known):
            raise StudyError(
                f"case {record.case.id}: its items of task {task} are not those of the other evaluations; "
                "hint: evaluate all cases with the same task version and limit"
            )
        return np.array([place[name] for name in known])


def _passages(passages: Sequence[str | None], ids: Sequence[str]) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_]]:
    """Cluster numbers (None: items stand alone) and which items belong to the assay; a passage is never split."""
    keys = [passage if passage is not None else f"\0{name}" for passage, name in zip(passages, ids, strict=True)]
    is_assay = np.array([zlib.crc32(key.encode()) % ASSAY_SHARE == 0 for key in keys])
    numbers: dict[str, int] = {}
    clusters = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return (clusters if len(numbers) < len(keys) else None), is_assay


def renumbered(clusters: NDArray[np.int64] | None, keep: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Cluster numbers of the items that are kept, counted from 0 again."""
    if clusters is None:
        return None
    return np.unique(clusters[keep], return_inverse=True)[1].astype(np.int64)
