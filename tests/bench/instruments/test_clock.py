"""Clock: the device is waited for, waiting for data is apart, warm-up is apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.instruments.clock import Stall, Stopwatch, laps, synchronise
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
    assert stall.batches == 3
    assert stall.seconds == pytest.approx(1.625)
    stall.reset()
    assert (stall.seconds, stall.batches) == (0.0, 0)


def test_laps_set_compilation_apart() -> None:
    found = laps([9.0, 1.5, 1.0, 1.0, 1.25, 0.75], warmup=2)
    assert found.compile_s == pytest.approx(8.5)
    assert found.warmup_s == pytest.approx(10.5)
    assert found.measured_s == pytest.approx(4.0)
    assert found.step_s == pytest.approx(1.0)
    assert found.steps == 4


def test_a_fast_warm_up_step_costs_nothing() -> None:
    assert laps([0.5, 1.0, 1.0], warmup=1).compile_s == 0.0


def test_nothing_left_to_measure() -> None:
    with pytest.raises(ValueError, match="2 steps leave none"):
        laps([1.0, 1.0], warmup=2)
