"""Sensors: one file each, one line each in `SENSORS`.

A sensor is asked first whether it works here (`probe`), then started and stopped around a measuring window by the
worker. It returns readings by metric name, each with unit, grade and scope, or the reason why there is none; it never
raises inside a window. Times are seconds of a monotonic clock, energies joules, memory bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bench.record import Grade, Reading

MIN_UPDATES = 10
"""Updates of a counter that a window must span: each end is off by one update at most, a tenth of the window."""

ENERGY = "energy_j/"
"""Readings of one domain are named `energy_j/gpu0`, `energy_j/package0`, `energy_j/host`; `energy_j` is their sum."""


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
    """Names of the metrics that `stop` returns; complete once `probe` has found the sensor available."""
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


@runtime_checkable
class EnergySensor(Sensor, Protocol):
    """A sensor of joules: it can also be looked at while its window is open."""

    def so_far(self) -> Mapping[str, Reading]:
        """Joules since `start`, by the names in `measures`; the window stays open."""
        ...

    def findings(self) -> Mapping[str, Any]:
        """What the last window saw beside its joules (wraps, a cross-check), as plain data for the record's detail."""
        ...


def refusal(window_s: float, update_period_s: float) -> str | None:
    """Why a window is too short for a counter that changes every `update_period_s`, or None when it is long enough."""
    needed_s = MIN_UPDATES * update_period_s
    if window_s >= needed_s:
        return None
    return (
        f"window of {window_s:.3g} s is shorter than {needed_s:.3g} s, ten updates of the counter; "
        "hint: measure more steps in one window"
    )
