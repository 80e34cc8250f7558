"""Readings of many ranks as those of one training: joules once a device, memory of all, time of the slowest.

Every rank measures its own GPU and the packages of its host. A domain that several ranks of a host report, a package or
a GPU that they share, is one domain, counted once, by its longest window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.instruments import ENERGY
from bench.instruments.gpus import index_of
from bench.instruments.power import total_energy
from bench.record import Grade, Reading, missing, reading

GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process measured."""

    host: str
    device: str
    """Where its work was: `cpu`, `cuda:0`, ..."""
    duration_s: float
    readings: Mapping[str, Reading]
    devices: Mapping[str, str] = field(default_factory=dict[str, str])
    """`Window.devices`: what tells the GPUs of a host apart where every rank is shown one and calls it `gpu0`."""


def combine(ranks: Sequence[Rank]) -> dict[str, Reading]:
    """`energy_j`, its domains by `energy_j/<host>/<scope>`, `peak_memory_bytes` and `train_time_s` of the whole.

    A sum is missing as soon as one of its parts is: a training on eight devices of which seven were measured has no
    energy.

    Raises:
        ValueError: no rank at all.
    """
    if not ranks:
        raise ValueError("readings of no rank cannot be combined")
    domains = _domains(ranks)
    found = dict(domains)
    found["energy_j"] = _energy(ranks, domains)
    found["peak_memory_bytes"] = _memory(ranks)
    found["train_time_s"] = reading(max(rank.duration_s for rank in ranks), "s", "timed", "host")
    return found


def _domains(ranks: Sequence[Rank]) -> dict[str, Reading]:
    """Each domain of each host once: of several readings that of the longest window, a missing one only if all are."""
    found: dict[str, tuple[bool, float, Reading]] = {}
    for host in _hosts(ranks):
        own = [rank for rank in ranks if rank.host == host]
        names = _Names(own)
        for rank in own:
            seen = {scope: rank.readings[ENERGY + scope] for scope in _scopes(rank)}
            if (scope := _own_gpu(rank)) is not None and scope not in seen:
                total = rank.readings.get("energy_j")
                seen[scope] = missing(
                    "J", (total and total.reason) or f"a rank did not measure its {rank.device}", scope
                )
            for scope, one in seen.items():
                key = f"{ENERGY}{host}/{names.of(rank, scope)}"
                candidate = (one.value is not None, rank.duration_s, one)
                if key not in found or candidate[:2] > found[key][:2]:
                    found[key] = candidate
    return {name: one for name, (_, _, one) in sorted(found.items())}


class _Names:
    """Scopes of a host's devices. Ranks that are each shown one GPU all call it `gpu0`: then they are numbered anew."""

    def __init__(self, own: Sequence[Rank]) -> None:
        pairs = {(scope, device) for rank in own for scope, device in rank.devices.items()}
        self._clash = len({scope for scope, _ in pairs}) < len(pairs) or len({device for _, device in pairs}) < len(
            pairs
        )
        self._numbers: dict[str, int] = {}

    def of(self, rank: Rank, scope: str) -> str:
        device = rank.devices.get(scope)
        if not self._clash or not scope.startswith(GPU):
            return scope
        return f"{GPU}{self._numbers.setdefault(device or f'{id(rank)} {scope}', len(self._numbers))}"


def _hosts(ranks: Sequence[Rank]) -> list[str]:
    return list(dict.fromkeys(rank.host for rank in ranks))


def _scopes(rank: Rank) -> list[str]:
    return [name.removeprefix(ENERGY) for name in rank.readings if name.startswith(ENERGY)]


def _own_gpu(rank: Rank) -> str | None:
    """Scope of the GPU that a rank works on; None on a CPU."""
    return None if rank.device.startswith("cpu") else f"{GPU}{index_of(rank.device)}"


def _energy(ranks: Sequence[Rank], domains: Mapping[str, Reading]) -> Reading:
    """Sum over hosts of each host's own total, by the rules of a single process."""
    totals: list[Reading] = []
    for host in _hosts(ranks):
        own = [rank for rank in ranks if rank.host == host]
        prefix = f"{ENERGY}{host}/"
        parts = {ENERGY + name.removeprefix(prefix): one for name, one in domains.items() if name.startswith(prefix)}
        absent = [one.reason for rank in own if (one := rank.readings.get("energy_j")) and one.reason]
        totals.append(total_energy(parts, absent[:1], own[0].device))
    return _sum(totals, "J")


def _memory(ranks: Sequence[Rank]) -> Reading:
    """Bytes of all ranks together: each holds its own."""
    return _sum(
        [rank.readings.get("peak_memory_bytes") or missing("B", "a rank did not measure it") for rank in ranks], "B"
    )


def _sum(parts: Sequence[Reading], unit: str) -> Reading:
    reasons = [part.reason or "not measured" for part in parts if part.value is None]
    if reasons:
        return missing(unit, f"{len(reasons)} of {len(parts)} parts have no value: {reasons[0]}")
    order: tuple[Grade, ...] = ("counted", "counter", "integrated", "modelled", "timed")
    grades: list[Grade] = [part.grade for part in parts if part.grade is not None]
    scopes = dict.fromkeys(part.scope for part in parts if part.scope)
    total = sum(part.value for part in parts if part.value is not None)
    return reading(total, unit, max(grades, key=order.index), "+".join(scopes) or None)
