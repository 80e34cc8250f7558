"""What the harness itself costs: the worker's metered loop against a bare loop, in one process, in turn.

    python benchmarks/overhead.py                 # 5 ms steps, 40 pairs of blocks, about 100 s

Both loops pull the same kind of steps, each some milliseconds of matrix products on one thread. The bare loop does
nothing else; the metered one is the very loop of `bench.measure`, with this machine's sensors open around it, the
clock, the log, the display's file and the wrapper that times the wait for data. Blocks alternate (bare, metered,
metered, bare, ...), so that a drift of the machine falls on both alike; each pair gives one ratio.

Two medians over the pairs are printed with their 95 % intervals: of wall time, which is what matters and which
neighbours disturb, and of the process's CPU time, threads of the sensors included, which they disturb less. Exit code
1 when even the lower bound of the wall-time ratio lies above the target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from scipy.stats import binom

from bench.instruments.clock import Stall
from bench.instruments.table import Window, open_sensors
from bench.measure import _pull
from bench.trainlog import TrainLog
from lmopt.step import Step

TARGET = 0.005
"""Largest share of a step that the harness may add."""
WIDTH = 192
"""Side of the products a step is made of: small, so that a step's length can be set closely."""
TOKENS = 512


@dataclass(frozen=True)
class Ratio:
    """Metered over bare, with its interval."""

    median: float
    low: float
    high: float


def ratio(bare_s: list[float], metered_s: list[float]) -> Ratio:
    """Median of the pairs' ratios and its two-sided interval of at least 95 %.

    The interval lies between two order statistics (Conover, Practical Nonparametric Statistics, 3.2): a neighbour that
    takes the machine for some seconds makes outliers, which would own a mean.
    """
    ratios = sorted(metered / bare for bare, metered in zip(bare_s, metered_s, strict=True))
    below = int(binom.ppf(0.025, len(ratios), 0.5))  # the k-th value from either end, counted from 1
    return Ratio(statistics.median(ratios), ratios[max(below, 1) - 1], ratios[-max(below, 1)])


def products_for(step_s: float, matrix: torch.Tensor) -> int:
    """How many products take `step_s` here."""
    count, took_s = 1, 0.0
    while took_s < 0.2:
        count *= 2
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(matrix, matrix)
        took_s = time.perf_counter() - start
    return max(1, round(count * step_s / took_s))


def steps(count: int, products: int, matrix: torch.Tensor, batches: Iterator[int]) -> Iterator[Step]:
    """Steps as a training yields them: a batch is fetched, work is done, a small value comes back."""
    for index in range(1, count + 1):
        next(batches)
        for _ in range(products):
            torch.mm(matrix, matrix)
        yield Step(index=index, tokens=TOKENS, loss=5.0, notes={"lr": 1e-3, "grad_norm": 1.0})


class Loops:
    """The two loops over the same work."""

    def __init__(self, count: int, step_s: float, folder: Path) -> None:
        self._count = count
        self._folder = folder
        self._matrix = torch.randn(WIDTH, WIDTH)
        self._products = products_for(step_s, self._matrix)
        self._window = Window(open_sensors("cpu"), idle_power_w=None)

    def bare(self) -> None:
        """Nothing but the steps."""
        for _ in steps(self._count, self._products, self._matrix, iter(range(self._count))):
            pass

    def metered(self) -> None:
        """What a worker does around the same steps."""
        log = TrainLog(self._folder / "checkpoint")
        log.begin(total_tokens=self._count * TOKENS, flops_per_token=1.0)
        state: Any = SimpleNamespace(total_steps=self._count)
        batches = Stall(range(self._count))
        _pull(steps(self._count, self._products, self._matrix, batches), state, log, self._window, self._folder)

    def time(self, loop: Callable[[], None]) -> tuple[float, float]:
        """Wall and CPU seconds of one block. Sensors are open around a metered one; opening them is not in the loop."""
        metered = loop == self.metered
        if metered:
            self._window.start()
        wall, cpu = time.perf_counter(), time.process_time()
        loop()
        took = time.perf_counter() - wall, time.process_time() - cpu
        if metered:
            self._window.stop()
        return took


def measure(loops: Loops, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every block by clock and loop; a pair of each comes before, to warm up."""
    found: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}
    for pair in range(-1, pairs):
        order = (loops.bare, loops.metered) if pair % 2 else (loops.metered, loops.bare)
        for loop in order:
            wall_s, cpu_s = loops.time(loop)
            if pair >= 0:
                found["wall"].setdefault(loop.__name__, []).append(wall_s)
                found["cpu"].setdefault(loop.__name__, []).append(cpu_s)
        print(f"\rpair {pair + 1}/{pairs}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="What the harness adds to a step.")
    parser.add_argument("--step-ms", type=float, default=5.0, help="length of a step (default 5)")
    parser.add_argument("--steps", type=int, default=250, help="steps a block (default 250)")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks (default 40)")
    arguments = parser.parse_args()
    if arguments.pairs < 6 or arguments.steps < 1 or arguments.step_ms <= 0:
        parser.error("needs at least 6 pairs, 1 step and a positive length")

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Loops(arguments.steps, arguments.step_ms / 1e3, Path(folder)), arguments.pairs)
    bare_ms = 1e3 * statistics.median(found["wall"]["bare"]) / arguments.steps
    print(f"bare step {bare_ms:.2f} ms, {arguments.pairs} pairs of {arguments.steps} steps")
    ratios = {clock: ratio(blocks["bare"], blocks["metered"]) for clock, blocks in found.items()}
    for clock, seen in ratios.items():
        print(f"metered / bare, {clock:>4} time: {seen.median:.4f} [{seen.low:.4f}, {seen.high:.4f}]")
    wall = ratios["wall"]
    answer = "yes" if wall.high < 1 + TARGET else "no" if wall.low > 1 + TARGET else "cannot tell: add --pairs"
    print(f"below {TARGET:.1%} of a step: {answer}")
    return 1 if answer == "no" else 0


if __name__ == "__main__":
    sys.exit(main())
