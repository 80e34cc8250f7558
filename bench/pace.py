"""How long a run will take yet: what is planned, corrected by what the finished cases took."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from bench.case import Case
from bench.plan import Plan
from bench.record import Record

DEFAULT_CASE_S = 10.0
"""Weight of a case whose time nobody can estimate."""
Sample = tuple[float, float]
"""Planned seconds of a finished case, and those it took."""


class Pace:
    """How far a run is. A case takes a start, the same for all of its kind, and so many times its planned seconds.

    The start (a process, a compilation, data from a cold disk) is what small cases take beyond their plan: a factor
    alone, learnt from tuning trials of a second each, would promise hours for trainings that take minutes.
    """

    def __init__(self, plan: Plan, finished: Mapping[str, Record]) -> None:
        self._open = [case for case in plan.cases if case.id not in finished]
        self._took: dict[str, list[Sample]] = {}
        self.total = len(plan.cases)
        self.done = self.total - len(self._open)

    def ended(self, case: Case, took_s: float) -> None:
        """A case is over."""
        self._open = [one for one in self._open if one.id != case.id]
        self.done += 1
        self._took.setdefault(case.kind, []).append((_planned_s(case), took_s))

    def left_s(self, share_of_current: float = 0.0) -> float | None:
        """Seconds to go, or None before the first case is over."""
        if not self._took:
            return None
        every = [sample for samples in self._took.values() for sample in samples]
        lines = {case.kind: _line(self._took.get(case.kind, every)) for case in self._open}
        ahead = [lines[case.kind][0] + lines[case.kind][1] * _planned_s(case) for case in self._open]
        return sum(ahead) - share_of_current * ahead[0] if ahead else 0.0


def _planned_s(case: Case) -> float:
    return case.estimate.time_s or DEFAULT_CASE_S


def _line(samples: list[Sample]) -> tuple[float, float]:
    """Start in seconds and factor: least squares; without a start where it would be negative or cannot be told."""
    planned, took = fmean(x for x, _ in samples), fmean(y for _, y in samples)
    spread = sum((x - planned) ** 2 for x, _ in samples)
    factor = sum((x - planned) * (y - took) for x, y in samples) / spread if spread else 0.0
    start = took - factor * planned
    return (start, factor) if factor > 0 and start > 0 else (0.0, took / planned)
