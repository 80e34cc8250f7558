"""NVML against a fake library: counters, sampled power, devices that fail, and which devices count."""

from __future__ import annotations

import pytest

from bench.instruments import EnergySensor
from bench.instruments.nvml import Nvml, visible_devices
from tests.bench.instruments.fakes import FakeClock, FakeGpu, FakeNvml

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbbb-3"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def opened(library: FakeNvml, clock: FakeClock, **environment: str) -> Nvml:
    sensor = Nvml(library, clock=clock, environment=environment, sample_period_s=None)
    found = sensor.probe()
    assert found.available, found.reason
    return sensor


def test_counter_of_two_devices(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0"), FakeGpu("GPU-1")])
    sensor = opened(library, clock)
    assert isinstance(sensor, EnergySensor)
    assert sensor.measures == ("energy_j/gpu0", "energy_j/gpu1")
    assert sensor.grade == "counter"
    sensor.start()
    clock.advance(2)
    library.gpus[0].energy_mj += 700_000
    library.gpus[1].energy_mj += 300_000
    found = sensor.stop()
    assert found["energy_j/gpu0"].value == pytest.approx(700.0)
    assert found["energy_j/gpu1"].value == pytest.approx(300.0)
    assert found["energy_j/gpu0"].grade == "counter"
    assert found["energy_j/gpu1"].scope == "gpu1"


def test_counter_and_integral_of_power_stand_side_by_side(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0", power_mw=100_000)])
    sensor = opened(library, clock)
    sensor.start()
    for power_mw in (300_000, 500_000):  # trapezoids of 200 W and 400 W, one second each
        clock.advance(1)
        library.gpus[0].power_mw = power_mw
        library.gpus[0].energy_mj += 310_000
        sensor.sample()
    sensor.stop()
    assert sensor.findings()["gpu0"]["integrated_j"] == pytest.approx(600.0)
    assert sensor.findings()["gpu0"]["counter_j"] == pytest.approx(620.0)


def test_without_a_counter_power_is_integrated(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0", energy_mj=None, power_mw=250_000)])
    sensor = opened(library, clock)
    assert sensor.grade == "integrated"
    sensor.start()
    clock.advance(4)
    found = sensor.stop()["energy_j/gpu0"]
    assert found.value == pytest.approx(1000.0)
    assert found.grade == "integrated"


def test_a_window_below_a_second_is_refused(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0")])
    sensor = opened(library, clock)
    sensor.start()
    clock.advance(0.99)
    library.gpus[0].energy_mj += 100_000
    found = sensor.stop()["energy_j/gpu0"]
    assert found.value is None
    assert "shorter than 1 s" in (found.reason or "")
    sensor.start()
    clock.advance(1.0)
    assert sensor.stop()["energy_j/gpu0"].value is not None


def test_a_device_that_dies_within_the_window(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0"), FakeGpu("GPU-1")])
    sensor = opened(library, clock)
    sensor.start()
    clock.advance(2)
    library.gpus[1].dead = True
    library.gpus[0].energy_mj += 1_000
    sensor.sample()
    found = sensor.stop()
    assert found["energy_j/gpu0"].value == pytest.approx(1.0)
    assert found["energy_j/gpu1"].value is None
    assert "GPU is lost" in (found["energy_j/gpu1"].reason or "")


def test_power_that_dies_within_the_window_is_no_integral(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0", energy_mj=None)])
    sensor = opened(library, clock)
    sensor.start()
    library.gpus[0].dead = True
    clock.advance(1)
    sensor.sample()
    library.gpus[0].dead = False
    clock.advance(1)
    assert sensor.stop()["energy_j/gpu0"].value is None


def test_a_device_dead_at_the_start(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0")])
    sensor = opened(library, clock)
    library.gpus[0].dead = True
    sensor.start()
    library.gpus[0].dead = False
    clock.advance(2)
    assert "start of the window" in (sensor.stop()["energy_j/gpu0"].reason or "")


def test_a_counter_that_goes_back(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0")])
    sensor = opened(library, clock)
    sensor.start()
    clock.advance(2)
    library.gpus[0].energy_mj = 10
    assert "went back" in (sensor.stop()["energy_j/gpu0"].reason or "")


def test_so_far_leaves_the_window_open(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0")])
    sensor = opened(library, clock)
    sensor.start()
    for _ in range(2):
        clock.advance(1)
        library.gpus[0].energy_mj += 5_000
        seen = sensor.so_far()["energy_j/gpu0"].value
    assert seen == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("0,7,1", [0]),
        ("1,1", [1]),
        ("GPU-aaaa", [0]),
        ("GPU-bbbb", []),
        ("GPU-bbbb-3, 0", [2, 0]),
        ("MIG-bbbb-3", []),
    ],
)
def test_visible_devices_as_cuda_reads_them(wanted: str | None, found: list[int]) -> None:
    environment = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    assert visible_devices(UUIDS, environment) == found


def test_scopes_count_visible_devices(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0", name="NVIDIA A100"), FakeGpu("GPU-1", name="NVIDIA H200")])
    sensor = opened(library, clock, CUDA_VISIBLE_DEVICES="1")
    assert sensor.names() == ["NVIDIA H200"]
    assert sensor.measures == ("energy_j/gpu0",)
    assert sensor.driver() == "580.1"


def test_reasons_why_not() -> None:
    assert "Driver Not Loaded" in Nvml(FakeNvml(starts=False)).probe().reason
    assert not Nvml(FakeNvml([]), environment={}).probe().available
    slice_of_one = FakeNvml([FakeGpu("GPU-0", energy_mj=None, power_mw=None)])
    found = Nvml(slice_of_one, environment={}).probe()
    assert not found.available
    assert "MIG" in (found.hint or "")


def test_a_counter_without_power_still_counts(clock: FakeClock) -> None:
    library = FakeNvml([FakeGpu("GPU-0", power_mw=None)])
    sensor = opened(library, clock)
    sensor.start()
    clock.advance(2)
    library.gpus[0].energy_mj += 9_000
    assert sensor.stop()["energy_j/gpu0"].value == pytest.approx(9.0)


def test_the_binding_that_is_installed_answers_without_raising() -> None:
    found = Nvml().probe()
    assert found.reason
