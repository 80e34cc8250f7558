"""From joules of domains to the figures of a window: their sum, and what is left of it without the idle power.

Domains are added only when none overlaps and all were read; a sum over fewer domains than the machine has would be
compared with full ones. The sum carries the weakest grade of its parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bench.instruments import ENERGY, EnergySensor
from bench.instruments.clock import NS_PER_S, Clock, now_ns
from bench.record import Grade, Reading, missing, reading

IDLE_WINDOW_S = 2.0
"""Twenty steps of the slowest counter (NVML's)."""
WEAKNESS: dict[Grade, int] = {"counter": 0, "integrated": 1, "modelled": 2}
"""Energy grades, the best first."""


def total_energy(domains: Mapping[str, Reading], absent: Sequence[str], device: str) -> Reading:
    """The best `energy_j` that these domains give for a run on `device`.

    Measured domains (counter, integrated) are added. Where none can be measured on this machine, the modelled host
    stands in on a CPU; on a GPU it would leave out the device that does the work, so there is none.

    Args:
        domains: readings by `energy_j/<scope>`.
        absent: why sensors that could have measured do not work here.
        device: `cpu`, `cuda`, ...
    """
    parts = {name.removeprefix(ENERGY): part for name, part in domains.items() if name.startswith(ENERGY)}
    measured = {scope: part for scope, part in parts.items() if scope != "host"}
    if device.startswith("cpu"):
        chosen = measured or parts
    else:
        chosen = measured if any(scope.startswith("gpu") for scope in measured) else {}
    scope = "+".join(chosen) or None
    reasons = [f"{part.reason}" for part in chosen.values() if part.value is None]
    if reasons or not chosen:
        return missing("J", "; ".join(reasons or absent) or "no energy sensor works here", scope)
    grades: list[Grade] = [part.grade for part in chosen.values() if part.grade is not None]
    joules = sum(part.value for part in chosen.values() if part.value is not None)
    return reading(joules, "J", max(grades, key=lambda grade: WEAKNESS[grade]), scope)


def net_energy(gross: Reading, idle_w: float | None, window_s: float) -> Reading:
    """Joules beyond what the idle machine would have drawn in the same time."""
    if gross.value is None or gross.grade is None:
        return missing("J", gross.reason or "gross energy is missing", gross.scope)
    if idle_w is None:
        return missing("J", "idle power was not measured before the run", gross.scope)
    net_j = gross.value - idle_w * window_s
    if net_j < 0:
        mean_w = gross.value / window_s
        reason = f"idle power ({idle_w:.1f} W) is above the window's mean ({mean_w:.1f} W): the idle machine was busy"
        return missing("J", reason, gross.scope)
    return reading(net_j, "J", gross.grade, gross.scope)


def idle_power(
    sensors: Sequence[EnergySensor],
    device: str = "cpu",
    *,
    seconds: float = IDLE_WINDOW_S,
    clock: Clock = now_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading:
    """Mean watts of the waiting machine, over the domains that `energy_j` is measured on.

    Args:
        sensors: available energy sensors (`probe` was called).
        device: where the run will be.
        seconds: how long to wait and watch.
    """
    for sensor in sensors:
        sensor.start()
    start_ns = clock()
    sleep(seconds)
    window_s = (clock() - start_ns) / NS_PER_S
    domains: dict[str, Reading] = {}
    for sensor in sensors:
        domains.update(sensor.stop())
    total = total_energy(domains, (), device)
    if total.value is None or total.grade is None:
        return missing("W", total.reason or "no energy sensor works here", total.scope)
    return reading(total.value / window_s, "W", total.grade, total.scope)
