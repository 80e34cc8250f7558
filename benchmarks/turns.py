"""Two ways of one piece of work in turn, A B B A: what drifts hits both alike. For `linear.py` and `matmul.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PASSES = 4
"""Passes timed at once."""

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Compared:
    """What two ways took."""

    first_s: float
    """Seconds a pass, median over rounds."""
    second_s: float
    ratios: list[float]
    """How many times as fast the second is: a number a round, ascending."""

    def times_as_fast(self) -> str:
        """Median, least and most."""
        return f"{statistics.median(self.ratios):.2f} ({self.ratios[0]:.2f} to {self.ratios[-1]:.2f})"


def compare(first: Work, second: Work, *, rounds: int, warmup_rounds: int, threads: int) -> Compared:
    """Time both, by processor time with one thread, which neighbours on the machine disturb less, else by wall time."""
    clock = time.process_time if threads == 1 else time.perf_counter
    pairs: list[tuple[float, float]] = []
    for _ in range(warmup_rounds + rounds):
        spent_s = [0.0, 0.0]
        for which, work in ((0, first), (1, second), (1, second), (0, first)):
            start_s = clock()
            for _ in range(PASSES):
                work()
            spent_s[which] += (clock() - start_s) / PASSES / 2
        pairs.append((spent_s[0], spent_s[1]))
    timed = pairs[warmup_rounds:]
    first_s, second_s = (statistics.median(column) for column in zip(*timed, strict=True))
    return Compared(first_s, second_s, sorted(one / other for one, other in timed))
