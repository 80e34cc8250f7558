"""Time: a monotonic clock, the device synchronised before it is read, and the loop's waiting for data apart.

`time.perf_counter_ns` is CLOCK_MONOTONIC on Linux: it never jumps with the wall clock. A GPU works behind the program's
back, so a duration read without waiting for the device is the time of handing work over, not of doing it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

NS_PER_S = 1_000_000_000

Clock = Callable[[], int]
"""Nanoseconds of a monotonic clock."""

now_ns: Clock = time.perf_counter_ns

Item = TypeVar("Item")


def synchronise(device: str) -> None:
    """Wait until `device` (`cpu`, `cuda`, `cuda:1`, ...) has finished all work handed to it."""
    if device.startswith("cpu"):
        return
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    else:
        torch.accelerator.synchronize()


class Stopwatch:
    """Seconds between `start` and `stop`, with the device synchronised at both ends."""

    def __init__(
        self, device: str = "cpu", *, clock: Clock = now_ns, wait: Callable[[str], None] = synchronise
    ) -> None:
        self._device = device
        self._clock = clock
        self._wait = wait
        self._start_ns = 0

    def start(self) -> None:
        """Wait for the device, then begin."""
        self._wait(self._device)
        self._start_ns = self._clock()

    def stop(self) -> float:
        """Wait for the device, then return the seconds since `start`."""
        self._wait(self._device)
        return (self._clock() - self._start_ns) / NS_PER_S


class Stall(Iterator[Item]):
    """Wraps an iterator of batches and adds up the time its consumer waits for them.

    Two clock readings a batch, some 100 nanoseconds; nothing else changes hands.
    """

    def __init__(self, batches: Iterable[Item], *, clock: Clock = now_ns) -> None:
        self._batches = iter(batches)
        self._clock = clock
        self._waited_ns = 0

    @property
    def seconds(self) -> float:
        """Seconds spent waiting for batches so far."""
        return self._waited_ns / NS_PER_S

    def __next__(self) -> Item:
        before = self._clock()
        try:
            return next(self._batches)
        finally:
            self._waited_ns += self._clock() - before
