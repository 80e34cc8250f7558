"""Clock: the device is waited for, waiting for data is apart, warm-up is apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.instruments.clock import Stall, Stopwatch, synchronise
from tests.bench.instruments.fakes import FakeClock


def test_the_stopwatch_waits_for_the_device_at_both_ends() -> None:
    clock = FakeClock()
    asked: list[str] = []

    def wait(device: str) -> None:
        asked.append(device)
        clock.advance(0.25)  # work handed over earlier is still running

    watch = Stopwatch("cuda:1", clock=clock, wait=wait)
    watch.start()
    clock.advance(1.0)
    assert watch.stop() == pytest.approx(1.25)
    assert asked == ["cuda:1", "cuda:1"]


def test_the_cpu_needs_no_waiting() -> None:
    synchronise("cpu")


def test_stall_counts_the_wait_for_batches_alone() -> None:
    clock = FakeClock()

    def slow() -> Iterator[int]:
        for batch in range(3):
            clock.advance(0.5)
            yield batch
        clock.advance(0.125)  # finding out that there is no more is waiting too

    stall = Stall(slow(), clock=clock)
    seen: list[int] = []
    for batch in stall:
        seen.append(batch)
        clock.advance(10)
    assert seen == [0, 1, 2]
    assert stall.seconds == pytest.approx(1.625)
