"""Fakes of what sensors read: a clock moved by hand, a powercap tree, an NVML library, a model of power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from bench.instruments import Probe
from bench.record import Grade, Reading, reading

RANGE_UJ = 262_143_328_850
"""max_energy_range_uj of many Intel packages."""


class FakeClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class FakePowercap:
    """A sysfs tree with RAPL zones, below `root`."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root / "sys"
        self.powercap = self.sysfs / "class/powercap"
        (self.powercap / "intel-rapl").mkdir(parents=True)

    def zone(self, path: str, name: str, energy_uj: int = 0, range_uj: int | None = RANGE_UJ) -> Path:
        """`path` like `intel-rapl:0` or `intel-rapl:0/intel-rapl:0:1`."""
        folder = self.powercap / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        if range_uj is not None:
            (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        return folder

    def set(self, path: str, energy_uj: int) -> None:
        (self.powercap / path / "energy_uj").write_text(f"{energy_uj}\n")


class FakeNvmlError(Exception):
    """What the fake library raises."""


@dataclass
class FakeGpu:
    uuid: str
    name: str = "NVIDIA H200"
    energy_mj: int | None = 5_000_000
    """None: the device has no counter."""
    power_mw: int | None = 200_000
    free_bytes: int = 80 * 2**30
    capability: tuple[int, int] = (9, 0)
    slices: tuple[str, ...] | None = None
    """UUIDs of the slices of a device in MIG mode."""
    dead: bool = False


@dataclass
class FakeNvml:
    """The functions of pynvml that the sensor calls."""

    gpus: list[FakeGpu] = field(default_factory=list)
    starts: bool = True
    NVMLError = FakeNvmlError

    def nvmlInit(self) -> None:
        if not self.starts:
            raise FakeNvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> bytes:
        return gpu.uuid.encode()

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        if gpu.dead:
            raise FakeNvmlError("GPU is lost")
        if gpu.energy_mj is None:
            raise FakeNvmlError("Not Supported")
        return gpu.energy_mj

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.slices is None:
            raise FakeNvmlError("Not Supported")
        return [int(bool(gpu.slices)), int(bool(gpu.slices))]

    def nvmlDeviceGetMaxMigDeviceCount(self, _gpu: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        if gpu.slices is None or index >= len(gpu.slices):
            raise FakeNvmlError("Not Found")
        return FakeGpu(gpu.slices[index])

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        if gpu.dead:
            raise FakeNvmlError("GPU is lost")
        return SimpleNamespace(free=gpu.free_bytes, total=140 * 2**30)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        if gpu.dead:
            raise FakeNvmlError("GPU is lost")
        return gpu.capability

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        if gpu.dead:
            raise FakeNvmlError("GPU is lost")
        if gpu.power_mw is None:
            raise FakeNvmlError("Not Supported")
        return gpu.power_mw


class FakePower:
    """A model of power that says what it is told to."""

    def __init__(self, watts: float = 50.0) -> None:
        self.watts = watts
        self.broken = False

    def start(self) -> None:
        pass

    def power_w(self) -> float:
        if self.broken:
            raise RuntimeError("no load today")
        return self.watts


class FakeEnergy:
    """An energy sensor with fixed readings."""

    update_period_s = 0.0

    def __init__(
        self,
        name: str,
        readings: Mapping[str, Reading],
        *,
        grade: Grade = "counter",
        available: bool = True,
        fails_at: str | None = None,
    ) -> None:
        self.name = name
        self.grade: Grade = grade
        self.measures = tuple(readings)
        self.looks = 0
        self._readings = readings
        self._available = available
        self._fails_at = fails_at

    def probe(self) -> Probe:
        self._maybe_fail("probe")
        return Probe(self._available, "fake" if self._available else f"no {self.name} here")

    def start(self) -> None:
        self._maybe_fail("start")

    def stop(self) -> Mapping[str, Reading]:
        self._maybe_fail("stop")
        return self._readings

    def so_far(self) -> Mapping[str, Reading]:
        self.looks += 1
        return self._readings

    def findings(self) -> Mapping[str, int]:
        self._maybe_fail("findings")
        return {"looks": self.looks}

    def _maybe_fail(self, where: str) -> None:
        if self._fails_at == where:
            raise ZeroDivisionError(f"fell over in {where}")


def joules(value: float, scope: str, grade: Grade = "counter") -> dict[str, Reading]:
    """One energy reading under its name."""
    return {f"energy_j/{scope}": reading(value, "J", grade, scope)}
