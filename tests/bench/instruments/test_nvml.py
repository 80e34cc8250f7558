"""NVML against a fake library: counters, sampled power, devices that fail, and which devices count."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bench.instruments import EnergySensor, gpus
from bench.instruments.gpus import visible_devices
from bench.instruments.nvml import Nvml
from tests.bench.instruments.fakes import FakeClock, FakeGpu, FakeNvml

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbbb-3"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def opened(library: FakeNvml, clock: FakeClock, **environment: str) -> Nvml:
    return opened_for(None, library, clock, **environment)


def opened_for(
    device: str | None, library: FakeNvml, clock: FakeClock, *, running: str | None = None, **environment: str
) -> Nvml:
    """`running`: UUID of the device as CUDA says it, once it is in use."""
    sensor = Nvml(
        library, device=device, clock=clock, environment=environment, sample_period_s=None,
        running_uuid=lambda _index: running,
    )  # fmt: skip
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


def spent(sensor: Nvml, library: FakeNvml, clock: FakeClock) -> dict[str, float | None]:
    """Joules by scope of a window in which the devices take 100 J, 200 J, 300 J, ..."""
    sensor.start()
    clock.advance(2)
    for number, one in enumerate(library.gpus, start=1):
        one.energy_mj = (one.energy_mj or 0) + 100_000 * number
    return {name.removeprefix("energy_j/"): found.value for name, found in sensor.stop().items()}


def several(count: int = 4, **more: object) -> FakeNvml:
    return FakeNvml([FakeGpu(f"GPU-{n}000-{n}", **more) for n in range(count)])


@pytest.mark.parametrize(
    ("device", "wanted", "found"),
    [
        ("cuda", None, {"gpu0": 100.0}),
        ("cuda:0", None, {"gpu0": 100.0}),
        ("cuda:2", None, {"gpu2": 300.0}),
        ("cuda:0", "3,1", {"gpu0": 400.0}),
        ("cuda:1", "3,1", {"gpu1": 200.0}),
        ("cuda:0", "GPU-2000-2", {"gpu0": 300.0}),
        ("cuda:1", "GPU-2, GPU-0", {"gpu1": 100.0}),
    ],
)
def test_a_window_counts_the_device_of_its_work_alone(
    clock: FakeClock, device: str, wanted: str | None, found: dict[str, float]
) -> None:
    library = several()
    environment = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    sensor = opened_for(device, library, clock, **environment)
    assert sensor.measures == tuple(f"energy_j/{scope}" for scope in found)
    assert spent(sensor, library, clock) == found


def test_a_neighbour_that_fails_costs_nothing(clock: FakeClock) -> None:
    library = several()
    sensor = opened_for("cuda:1", library, clock)
    library.gpus[0].dead = True
    assert spent(sensor, library, clock) == {"gpu1": 200.0}


def test_cuda_in_use_says_which_device_it_is_whatever_the_order(clock: FakeClock) -> None:
    library = several()
    seen: list[str | None] = [None]
    sensor = Nvml(
        library, device="cuda:0", clock=clock, environment={}, sample_period_s=None, running_uuid=lambda _index: seen[0]
    )
    assert sensor.probe().available
    assert spent(sensor, library, clock) == {"gpu0": 100.0}, "not in use yet"
    seen[0] = "2000-2"
    assert spent(sensor, library, clock) == {"gpu0": 300.0}, "as PyTorch writes UUIDs"
    seen[0] = "ffff"
    assert spent(sensor, library, clock) == {"gpu0": 100.0}, "one that NVML does not know"


def test_unlike_gpus_are_not_guessed_at(clock: FakeClock) -> None:
    library = several(2)
    library.gpus[1].name = "NVIDIA T400"
    sensor = opened_for("cuda:0", library, clock)
    sensor.start()
    clock.advance(2)
    assert "hint: CUDA_DEVICE_ORDER=PCI_BUS_ID" in (sensor.stop()["energy_j/gpu0"].reason or "")
    assert spent(opened_for("cuda:0", library, clock, running="1000-1"), library, clock) == {"gpu0": 200.0}
    assert spent(opened_for("cuda:1", library, clock, CUDA_DEVICE_ORDER="PCI_BUS_ID"), library, clock) == {
        "gpu1": 200.0
    }
    assert spent(opened_for("cuda:0", library, clock, CUDA_VISIBLE_DEVICES="GPU-1"), library, clock) == {"gpu0": 200.0}


def test_a_device_that_is_not_visible_is_not_measured() -> None:
    found = Nvml(several(2), device="cuda:2", environment={}).probe()
    assert not found.available
    assert found.reason == "no GPU numbered 2 is visible to this process"


@pytest.mark.parametrize("wanted", [None, "0", "MIG-aaaa", "MIG-GPU-0000-0/1/0", "GPU-0"])
def test_a_slice_is_not_charged_for_the_whole_device(clock: FakeClock, wanted: str | None) -> None:
    library = several(2)
    library.gpus[0].slices = ("MIG-aaaa-1", "MIG-bbbb-2")
    library.gpus[1].slices = ()
    environment = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    found = Nvml(library, device="cuda:0", environment=environment).probe()
    assert not found.available
    assert "MIG mode" in found.reason
    assert "whole device" in (found.hint or "")
    assert spent(opened_for("cuda:1", library, clock), library, clock) == {"gpu1": 200.0}
    described = Nvml(library, environment=environment).probe()
    assert described.available, "the machine's devices are named all the same"
    assert "not for gpu0: in MIG mode" in described.reason
    assert (
        not Nvml(library, device="cuda:1", environment=environment, running_uuid=lambda _: "bbbb-2").probe().available
    )
    seen: list[str | None] = [None]
    sensor = Nvml(library, device="cuda:1", clock=clock, environment={}, running_uuid=lambda _index: seen[0])
    assert sensor.probe().available
    seen[0] = "bbbb-2"
    assert spent(sensor, library, clock) == {"gpu1": None}, "CUDA in use says that it is a slice"


def test_torch_is_asked_only_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert gpus.running_uuid(0) is None
    assert "torch" not in sys.modules
    cuda = SimpleNamespace(is_initialized=lambda: False, get_device_properties=lambda n: SimpleNamespace(uuid=f"u{n}"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert gpus.running_uuid(1) is None
    cuda.is_initialized = lambda: True
    assert gpus.running_uuid(1) == "u1"
    cuda.get_device_properties = lambda _: SimpleNamespace()
    assert gpus.running_uuid(1) is None, "an older torch"


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
