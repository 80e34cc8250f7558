"""Which setting an arm trains with, chosen from its finished trials, and whether all arms were tried equally often.

A trial is a short training at one setting (a learning rate, perhaps a weight decay) and one of the trials' own seeds.
The setting with the lowest mean validation loss is chosen; a setting at which any trial diverged is worse than every
one at which none did. Settings that are equal to the last digit are decided by the smaller numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from bench.record import Record

Edge = Literal["lowest", "highest"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial."""

    case: str
    seed: int
    setting: Mapping[str, float]
    """`lr`, and `weight_decay` where that was tried too."""
    loss: float | None
    """Final validation loss in nats a token; None: it diverged."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best setting of an arm and the whole grid behind it."""

    setting: Mapping[str, float]
    loss: float
    """Mean over the trials' seeds, in nats a token."""
    edges: Mapping[str, Edge]
    """Knobs whose best value is the end of what was tried: the grid may be too narrow there."""
    trials: tuple[Trial, ...]

    def to_dict(self, metric: str) -> dict[str, Any]:
        """What the record of a training keeps of it."""
        trials = [{"case": one.case, "seed": one.seed, **one.setting, "loss": one.loss} for one in self.trials]
        return {
            "chosen": dict(self.setting), "loss": self.loss, "metric": metric, "edges": dict(self.edges),
            "trials": trials,
        }  # fmt: skip


def trial_of(record: Record, metric: str) -> Trial:
    """A finished trial as its record tells it."""
    loss = record.value(metric) if record.status == "ok" else None
    return Trial(record.case.id, record.case.seed or 0, dict(record.detail.get("trial") or {}), loss)


def choose(trials: Iterable[Trial]) -> Choice | None:
    """The best setting; None where every one diverged (or there was no trial)."""
    tried = sorted(trials, key=lambda one: (*_key(one.setting), one.seed))
    by_setting: dict[tuple[float, ...], list[Trial]] = {}
    for trial in tried:
        by_setting.setdefault(_key(trial.setting), []).append(trial)
    means = {key: mean for key, found in by_setting.items() if (mean := _mean(found)) is not None}
    if not means:
        return None
    best = min(means, key=lambda key: (means[key], key))
    setting = by_setting[best][0].setting
    return Choice(setting, means[best], _edges(setting, tried), tuple(tried))


def _key(setting: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(setting[name] for name in sorted(setting))


def _mean(trials: Iterable[Trial]) -> float | None:
    losses = [trial.loss for trial in trials]
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return fmean(known) if len(known) == len(losses) else None


def _edges(setting: Mapping[str, float], tried: Iterable[Trial]) -> dict[str, Edge]:
    found: dict[str, Edge] = {}
    listed = list(tried)
    for name, value in setting.items():
        values = {trial.setting[name] for trial in listed}
        if len(values) > 1 and value in (min(values), max(values)):
            found[name] = "lowest" if value == min(values) else "highest"
    return found


def by_setting(trials: Iterable[Trial]) -> dict[tuple[tuple[str, float], ...], float | None]:
    """setting -> mean loss over its seeds, None where a trial of it diverged; in rising order."""
    groups: dict[tuple[tuple[str, float], ...], list[Trial]] = {}
    for trial in sorted(trials, key=lambda one: _key(one.setting)):
        groups.setdefault(tuple(sorted(trial.setting.items())), []).append(trial)
    return {setting: _mean(found) for setting, found in groups.items()}
