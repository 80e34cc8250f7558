"""Every sensor, one line each, and the window that opens them all around a stretch of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bench.instruments import ENERGY, EnergySensor, Probe, Sensor
from bench.instruments.clock import NS_PER_S, Clock, Stopwatch, now_ns, synchronise
from bench.instruments.codecarbon import CodeCarbon
from bench.instruments.memory import DeviceMemory, HostMemory
from bench.instruments.nvml import Nvml
from bench.instruments.power import idle_power, net_energy, total_energy
from bench.instruments.rapl import Rapl
from bench.record import EVIDENCE, Reading, missing, reading


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table."""

    open: Callable[..., Sensor]
    accelerator: bool = False
    """Measures an accelerator only: left out where the work is on the CPU."""
    of_device: bool = False
    """Measures the device that the work is on, and is opened with its name: `open(device=...)`."""


SENSORS: dict[str, Entry] = {
    "rss": Entry(HostMemory),
    "cuda_memory": Entry(DeviceMemory, accelerator=True),
    "rapl": Entry(Rapl),
    "nvml": Entry(Nvml, accelerator=True, of_device=True),
    "codecarbon": Entry(CodeCarbon),
}
"""Name -> how to open it. Where two return the same metric, the later one that works on the device is kept."""


def open_sensors(device: str | None = None) -> list[Sensor]:
    """A new instance of every sensor that has something to say of work on `device`; None: of all, for all devices."""
    on_cpu = device is not None and device.startswith("cpu")
    return [
        entry.open(device=device) if entry.of_device else entry.open()
        for entry in SENSORS.values()
        if not (on_cpu and entry.accelerator)
    ]


def probe(sensor: Sensor) -> Probe:
    """The sensor's probe; a sensor that raises is one that does not work here."""
    try:
        return sensor.probe()
    except Exception as error:  # noqa: BLE001 - drivers fail in any way, and a sensor must not cost a training
        return Probe(False, f"{type(error).__name__} while looking for it: {error}")


def describe(sensors: Sequence[Sensor]) -> dict[str, dict[str, Any]]:
    """What each sensor can do here, as plain data for environment.json."""
    found: dict[str, dict[str, Any]] = {}
    for sensor in sensors:
        seen = probe(sensor)
        found[sensor.name] = {
            "available": seen.available,
            "reason": seen.reason,
            "hint": seen.hint,
            "grade": sensor.grade,
            "update_period_s": sensor.update_period_s,
            "measures": list(sensor.measures),
        }
    return found


def idle_power_reading(device: str = "cpu") -> Reading:
    """Watts of the waiting machine over the domains that a run on `device` is measured on (takes about 2 s)."""
    sensors = [
        sensor for sensor in open_sensors(device) if isinstance(sensor, EnergySensor) and probe(sensor).available
    ]
    try:
        return idle_power(sensors, device)
    except Exception as error:  # noqa: BLE001 - as in `probe`
        return missing("W", f"{type(error).__name__} while measuring idle power: {error}")


def idle_power_w(device: str = "cpu") -> float | None:
    """`idle_power_reading` as a number, None where it could not be taken."""
    return idle_power_reading(device).value


LOOK_EVERY_S = 1.0
"""`Window.energy_so_far` reads the sensors again after this long; in between it repeats itself. A reading takes a third
of a millisecond when the caches are cold: once a second, 0.03%."""


class Window:
    """All sensors around one stretch of work. Between `start` and `stop` nothing of it runs in the measured loop.

    Whatever a sensor does, neither method raises: a reading that could not be taken is missing, with its reason.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor] | None = None,
        *,
        device: str = "cpu",
        idle_power_w: float | None = None,
        clock: Clock = now_ns,
        wait: Callable[[str], None] = synchronise,
    ) -> None:
        """Probe the sensors (default: those of `device`); nothing is measured yet.

        Args:
            sensors: sensors to open.
            device: where the work is: `cpu`, `cuda`, `cuda:1`, ...
            idle_power_w: what `idle_power_w(device)` said before the run.
        """
        self._device = device
        self._idle_w = idle_power_w
        self._watch = Stopwatch(device, clock=clock, wait=wait)
        self._clock = clock
        self._sensors: list[Sensor] = []
        self._absent: list[tuple[Sensor, str]] = []
        for sensor in open_sensors(device) if sensors is None else sensors:
            seen = probe(sensor)
            if seen.available:
                self._sensors.append(sensor)
            else:
                self._absent.append((sensor, f"{sensor.name}: {seen.reason}"))
        self._failed: dict[str, str] = {}
        self._looked: tuple[int, Reading] | None = None
        self.duration_s = 0.0
        """Seconds of the last window, the device synchronised at both ends."""

    def before_model(self) -> None:
        """Note what memory is in use before the model is built. Without this call, `start` is that moment."""
        for sensor in self._sensors:
            if isinstance(sensor, HostMemory):
                sensor.before_model()

    def start(self) -> None:
        """Open every sensor, then wait for the device and start the clock."""
        self._failed, self._looked = {}, None
        for sensor in self._sensors:
            try:
                sensor.start()
            except Exception as error:  # noqa: BLE001 - as in `probe`
                self._failed[sensor.name] = f"{sensor.name}: {type(error).__name__} at the start: {error}"
        self._watch.start()

    def energy_so_far(self) -> Reading:
        """Joules since `start`, at most `LOOK_EVERY_S` old: cheap enough to be asked after every step."""
        now = self._clock()
        if self._looked is None or now - self._looked[0] >= LOOK_EVERY_S * NS_PER_S:
            seen = self._collect(lambda sensor: sensor.so_far() if isinstance(sensor, EnergySensor) else {})
            self._looked = (now, self._total(seen))
        return self._looked[1]

    def stop(self) -> dict[str, Reading]:
        """Wait for the device, stop the clock, close every sensor and return all readings by metric name."""
        self.duration_s = self._watch.stop()
        readings = self._collect(lambda sensor: sensor.stop())
        gross = self._total(readings)
        readings["energy_j"] = gross
        readings["energy_net_j"] = net_energy(gross, self._idle_w, self.duration_s)
        readings["idle_power_w"] = self._idle(gross)
        if "peak_memory_bytes" not in readings:
            readings["peak_memory_bytes"] = missing("B", "; ".join(why for _, why in self._absent) or "no sensor")
        return readings

    @property
    def findings(self) -> dict[str, Any]:
        """What the energy sensors saw beside their joules, by sensor, for a record's detail."""
        found: dict[str, Any] = {}
        for sensor in self._sensors:
            if isinstance(sensor, EnergySensor) and sensor.name not in self._failed:
                with suppress(Exception):
                    found[sensor.name] = dict(sensor.findings())
        return found

    @property
    def devices(self) -> dict[str, str]:
        """Scope -> what tells the device behind it from others of its host, where a sensor knows."""
        return {
            scope: seen["device"]
            for domains in self.findings.values()
            for scope, seen in domains.items()
            if isinstance(seen, dict) and "device" in seen
        }

    def _collect(self, read: Callable[[Sensor], Mapping[str, Reading]]) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for sensor in self._sensors:
            if sensor.name not in self._failed:
                try:
                    readings.update(read(sensor))
                    continue
                except Exception as error:  # noqa: BLE001 - as in `probe`
                    self._failed[sensor.name] = f"{sensor.name}: {type(error).__name__} within the window: {error}"
            for name in sensor.measures:
                scope = name.removeprefix(ENERGY) if name.startswith(ENERGY) else None
                unit = "J" if scope else "B"
                readings[name] = missing(unit, self._failed[sensor.name], scope)
        return readings

    def _total(self, readings: Mapping[str, Reading]) -> Reading:
        absent = [why for sensor, why in self._absent if sensor.grade in EVIDENCE]
        return total_energy(readings, absent, self._device)

    def _idle(self, gross: Reading) -> Reading:
        if self._idle_w is None:
            return missing("W", "idle power was not measured before the run", gross.scope)
        if gross.grade is None:
            return missing("W", gross.reason or "no energy sensor works here", gross.scope)
        return reading(self._idle_w, "W", gross.grade, gross.scope)
