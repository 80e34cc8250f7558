"""What the harness itself costs: the worker's metered loop against a bare loop, in one process, in turn.

    python benchmarks/overhead.py                 # 5 ms steps, 40 pairs of blocks, about 100 s

Both loops pull the same kind of steps, each some milliseconds of matrix products on one thread. The bare loop does
nothing else; the metered one is the very loop of `bench.measure`, with this machine's sensors open around it, the
clock, the log, the display's file and the wrapper that times the wait for data. Blocks alternate (bare, metered,
metered, bare, ...), so that a drift of the machine falls on both alike; each pair gives one ratio.

Three medians over the pairs are printed with their 95% intervals: metered over bare in wall time, which is what
matters and which neighbours disturb; the same in the process's CPU time, threads of the sensors included; and, as a
share of the work, the time that a metered block spends outside the steps' own work beyond what a bare one does. The
last is sharp on a busy machine too, but blind to threads that slow the work itself. Exit code 1 when even the lower
bound of the wall-time ratio lies above the target.
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

from bench.casefolder import Progress
from bench.instruments.clock import Stall
from bench.instruments.table import Window, open_sensors
from bench.measure import pull
from bench.trainlog import TrainLog
from lmopt.step import Step

TARGET = 0.005
"""Largest share of a step that the harness may add."""
WIDTH = 192
"""Side of the products a step is made of: small, so that a step's length can be set closely."""
TOKENS = 512


@dataclass(frozen=True)
class Block:
    """Seconds of one block."""

    wall_s: float
    cpu_s: float
    work_s: float
    """Of the wall time, what the steps' own work took."""


@dataclass(frozen=True)
class Middle:
    """A median with its interval."""

    median: float
    low: float
    high: float


def middle(values: list[float]) -> Middle:
    """Median and its two-sided interval of at least 95%.

    The interval lies between two order statistics (Conover, Practical Nonparametric Statistics, 3.2): a neighbour that
    takes the machine for some seconds makes outliers, which would own a mean.
    """
    rank = max(1, int(binom.ppf(0.025, len(values), 0.5)))  # from either end, counted from 1
    ordered = sorted(values)
    return Middle(statistics.median(ordered), ordered[rank - 1], ordered[-rank])


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


class Loops:
    """The two loops over the same work."""

    def __init__(self, count: int, step_s: float, folder: Path) -> None:
        self._count = count
        self._folder = folder
        self._matrix = torch.randn(WIDTH, WIDTH)
        self._products = products_for(step_s, self._matrix)
        self._work_s = 0.0
        self._window = Window(open_sensors("cpu"), idle_power_w=None)

    def bare(self) -> None:
        """Nothing but the steps."""
        for _ in self._steps(iter(range(self._count))):
            pass

    def metered(self) -> None:
        """What a worker does around the same steps."""
        log = TrainLog(self._folder / "checkpoint")
        log.begin(total_tokens=self._count * TOKENS, flops_per_token={TOKENS: 1.0}, full_length=TOKENS)
        state: Any = SimpleNamespace(total_steps=self._count)
        batches = Stall(range(self._count))
        progress = Progress(self._folder, total=self._count)
        pull(self._steps(batches), state, log, self._window, None, progress)

    def _steps(self, batches: Iterator[int]) -> Iterator[Step]:
        """Steps as a training yields them: a batch is fetched, work is done, a small value comes back."""
        for index in range(1, self._count + 1):
            next(batches)
            start = time.perf_counter()
            for _ in range(self._products):
                torch.mm(self._matrix, self._matrix)
            self._work_s += time.perf_counter() - start
            yield Step(index=index, tokens=TOKENS, loss=5.0, notes={"lr": 1e-3, "grad_norm": 1.0})

    def time(self, loop: Callable[[], None]) -> Block:
        """One block. Sensors are open around a metered one; opening them is not in the loop."""
        metered = loop == self.metered
        if metered:
            self._window.start()
        self._work_s = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        loop()
        took = Block(time.perf_counter() - wall, time.process_time() - cpu, self._work_s)
        if metered:
            self._window.stop()
        return took


def measure(loops: Loops, pairs: int) -> list[tuple[Block, Block]]:
    """(bare, metered) of every pair; one pair comes before, to warm up."""
    found: list[tuple[Block, Block]] = []
    for pair in range(-1, pairs):
        if pair % 2:
            bare, metered = loops.time(loops.bare), loops.time(loops.metered)
        else:
            metered, bare = loops.time(loops.metered), loops.time(loops.bare)
        if pair >= 0:
            found.append((bare, metered))
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
    bare_ms = 1e3 * statistics.median(bare.wall_s for bare, _ in found) / arguments.steps
    print(f"bare step {bare_ms:.2f} ms, {arguments.pairs} pairs of {arguments.steps} steps")
    wall = middle([metered.wall_s / bare.wall_s for bare, metered in found])
    cpu = middle([metered.cpu_s / bare.cpu_s for bare, metered in found])
    outside = middle([((m.wall_s - m.work_s) - (b.wall_s - b.work_s)) / b.work_s for b, m in found])
    print(f"metered / bare, wall time: {wall.median:.4f} [{wall.low:.4f}, {wall.high:.4f}]")
    print(f"metered / bare,  CPU time: {cpu.median:.4f} [{cpu.low:.4f}, {cpu.high:.4f}]")
    print(f"added outside the work:    {outside.median:.2%} [{outside.low:.2%}, {outside.high:.2%}] of the work")
    answer = "yes" if wall.high < 1 + TARGET else "no" if wall.low > 1 + TARGET else "cannot tell: add --pairs"
    print(f"below {TARGET:.1%} of a step: {answer}")
    return 1 if answer == "no" else 0


if __name__ == "__main__":
    sys.exit(main())
