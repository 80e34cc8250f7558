"""The window: which reading wins, that nothing raises, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.instruments import Sensor, table
from bench.instruments.memory import HostMemory
from bench.instruments.nvml import Nvml
from bench.instruments.power import idle_power
from bench.instruments.table import (
    SENSORS,
    Entry,
    Window,
    describe,
    idle_power_reading,
    idle_power_w,
    open_sensors,
    probe,
)
from bench.instruments.ticker import Ticker
from tests.bench.instruments.fakes import FakeClock, FakeEnergy, FakeGpu, FakeNvml, joules


def window(sensors: Sequence[Sensor], clock: FakeClock | None = None, **arguments: object) -> Window:
    return Window(sensors, clock=clock or FakeClock(), wait=lambda _device: None, **arguments)  # type: ignore[arg-type]


def test_counters_win_over_the_model() -> None:
    clock = FakeClock()
    sensors = [FakeEnergy("rapl", joules(80, "package0")), FakeEnergy("cc", joules(5, "host", "modelled"))]
    opened = window(sensors, clock, idle_power_w=10.0)
    opened.start()
    clock.advance(4)
    found = opened.stop()
    assert opened.duration_s == pytest.approx(4.0)
    assert (found["energy_j"].value, found["energy_j"].scope) == (80, "package0")
    assert found["energy_j/host"].grade == "modelled"
    assert found["energy_net_j"].value == pytest.approx(40.0)
    assert found["idle_power_w"].value == 10.0
    assert found["idle_power_w"].scope == "package0"


def test_without_a_sensor_every_figure_has_its_reason() -> None:
    absent = [FakeEnergy("rapl", {}, available=False), FakeEnergy("nvml", {}, available=False)]
    opened = window(absent)
    opened.start()
    found = opened.stop()
    assert found["energy_j"].value is None
    assert found["energy_j"].reason == "rapl: no rapl here; nvml: no nvml here"
    for name in ("energy_net_j", "idle_power_w", "peak_memory_bytes"):
        assert found[name].value is None
        assert found[name].reason


@pytest.mark.parametrize("where", ["probe", "start", "stop", "findings"])
def test_a_sensor_that_raises_costs_its_reading_and_nothing_else(where: str) -> None:
    broken = FakeEnergy("broken", joules(1, "package0"), fails_at=where)
    opened = window([broken, HostMemory()])
    opened.start()
    found = opened.stop()
    assert isinstance(opened.findings, dict)
    assert found["peak_memory_bytes"].value is not None
    if where in ("start", "stop"):
        assert found["energy_j"].value is None
        assert found["energy_j/package0"].scope == "package0"
        assert f"fell over in {where}" in (found["energy_j"].reason or "")


def test_the_energy_so_far_is_read_once_a_second_at_most() -> None:
    clock = FakeClock()
    sensor = FakeEnergy("rapl", joules(3, "package0"))
    opened = window([sensor], clock)
    opened.start()
    for _ in range(600):  # three seconds of 5 ms steps
        assert opened.energy_so_far().value == 3
        clock.advance(0.005)
    assert sensor.looks == 3
    opened.start()
    opened.energy_so_far()
    assert sensor.looks == 4


def test_every_sensor_is_described_under_its_own_name() -> None:
    sensors = open_sensors()
    assert [sensor.name for sensor in sensors] == list(SENSORS)
    for facts in describe(sensors).values():
        assert facts["reason"]
        assert facts["available"] or facts["hint"] or facts["reason"]


def test_accelerator_sensors_stay_shut_on_a_cpu() -> None:
    names = {sensor.name for sensor in open_sensors("cpu")}
    assert "nvml" not in names
    assert "rapl" in names
    assert "nvml" in {sensor.name for sensor in open_sensors("cuda:0")}


def test_a_window_and_its_idle_power_are_of_the_device_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    library, clock = FakeNvml([FakeGpu(f"GPU-{n}", power_mw=100_000 * (n + 1)) for n in range(3)]), FakeClock()

    def nvml(device: str | None) -> Nvml:
        return Nvml(library, device=device, clock=clock, environment={}, sample_period_s=None)

    def wait(seconds: float, busy: int | None = None) -> None:
        clock.advance(seconds)
        for number, one in enumerate(library.gpus):
            watts = (number + 1) * 100 + (1000 if number == busy else 0)
            one.energy_mj = (one.energy_mj or 0) + round(watts * seconds * 1000)

    monkeypatch.setattr(table, "SENSORS", {"nvml": Entry(nvml, accelerator=True, of_device=True)})
    for device, idle_w in (("cuda", 100.0), ("cuda:1", 200.0)):
        sensors = open_sensors(device)
        assert all(probe(sensor).available for sensor in sensors)
        idle = idle_power(sensors, device, clock=clock, sleep=wait)  # type: ignore[arg-type]
        assert idle.value == pytest.approx(idle_w)
        opened = window(open_sensors(device), clock, device=device, idle_power_w=idle.value)
        opened.start()
        wait(2.0, busy=1)
        found = opened.stop()
        assert found["energy_j"].value == pytest.approx(2 * idle_w + (2000 if device == "cuda:1" else 0))
        assert found["energy_j"].scope == idle.scope == ("gpu1" if device == "cuda:1" else "gpu0")
        assert found["energy_net_j"].value == pytest.approx(2000 if device == "cuda:1" else 0)
        assert list(opened.devices) == [found["energy_j"].scope]
    assert len(set(opened.devices.values()) | set(window(open_sensors("cuda"), clock).devices.values())) == 2


def test_idle_power_that_falls_over_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakeEnergy("rapl", joules(1, "package0"), fails_at="start")
    monkeypatch.setattr("bench.instruments.table.open_sensors", lambda _device: [broken])
    assert "fell over in start" in (idle_power_reading("cpu").reason or "")
    assert idle_power_w("cpu") is None


def test_the_real_window_measures_this_process() -> None:
    opened = Window(open_sensors("cpu"))
    opened.before_model()
    opened.start()
    found = opened.stop()
    assert opened.duration_s > 0
    assert found["peak_memory_bytes"].scope == "host"
    assert found["energy_j"].value is None  # far shorter than any sensor can resolve
    assert "hint" in (found["energy_j"].reason or "")


def test_a_ticker_calls_until_it_is_stopped() -> None:
    import threading

    called = threading.Event()
    ticker = Ticker(0.001, called.set)
    ticker.start()
    assert called.wait(5)
    ticker.stop()
    called.clear()
    assert not called.wait(0.02)
    ticker.stop()
