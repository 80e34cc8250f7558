"""Sensors: one file each, one line each in `SENSORS`.

A sensor is asked first whether it works here (`probe`), then started and stopped around a measuring window by the
worker. It returns readings by metric name, each with unit, grade and scope, or the reason why there is none; it never
raises inside a window. Times are seconds of a monotonic clock, energies joules, memory bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bench.record import Grade, Reading


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a sensor works on this machine."""

    available: bool
    reason: str
    """What was found, or why there is nothing: one sentence."""
    hint: str | None = None
    """What would make it work; None when it does or nothing can."""


class Sensor(Protocol):
    """One instrument."""

    name: str
    """Short name (`nvml`, `rapl`, `rss`), also in environment.json."""
    measures: tuple[str, ...]
    """Names of the metrics that `stop` returns."""
    grade: Grade
    """Grade of its readings."""
    update_period_s: float
    """How often the underlying counter changes; a window shorter than ten of these is refused with a reason."""

    def probe(self) -> Probe:
        """Look, without side effects and without raising."""
        ...

    def start(self) -> None:
        """Open the window."""
        ...

    def stop(self) -> Mapping[str, Reading]:
        """Close the window and return a reading for each name in `measures`."""
        ...
