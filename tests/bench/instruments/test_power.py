"""Sums over domains, idle power, and what is left of a window's energy without it."""

from __future__ import annotations

import pytest

from bench.instruments.power import idle_power, net_energy, total_energy
from bench.record import missing, reading
from tests.bench.instruments.fakes import FakeClock, FakeEnergy, joules


def test_measured_domains_are_added_and_the_model_left_out() -> None:
    found = total_energy(joules(30, "package0") | joules(5, "dram0") | joules(99, "host", "modelled"), (), "cpu")
    assert found.value == 35
    assert found.grade == "counter"
    assert found.scope == "package0+dram0"


def test_the_weakest_grade_is_the_grade_of_the_sum() -> None:
    found = total_energy(joules(30, "package0") | joules(70, "gpu0", "integrated"), (), "cuda")
    assert found.value == 100
    assert found.grade == "integrated"


def test_a_domain_that_failed_leaves_no_sum() -> None:
    lost = {"energy_j/gpu1": missing("J", "gpu1: lost", "gpu1")}
    found = total_energy(joules(70, "gpu0") | lost, (), "cuda")
    assert found.value is None
    assert found.reason == "gpu1: lost"
    assert found.scope == "gpu0+gpu1"


def test_a_domain_that_failed_is_not_replaced_by_the_model() -> None:
    lost = {"energy_j/package0": missing("J", "package0: vanished", "package0")}
    assert total_energy(lost | joules(9, "host", "modelled"), (), "cpu").value is None


def test_the_model_stands_in_on_a_cpu_without_counters() -> None:
    found = total_energy(joules(9, "host", "modelled"), ("rapl: no RAPL in this virtual machine",), "cpu")
    assert found.value == 9
    assert found.grade == "modelled"
    assert found.scope == "host"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_without_nvml_has_no_energy(device: str) -> None:
    domains = joules(9, "host", "modelled") | joules(30, "package0")
    found = total_energy(domains, ("nvml: NVML does not start",), device)
    assert found.value is None
    assert found.reason == "nvml: NVML does not start"


def test_nothing_at_all_joins_the_reasons() -> None:
    found = total_energy({}, ("rapl: none", "codecarbon: none"), "cpu")
    assert found.reason == "rapl: none; codecarbon: none"


def test_net_is_gross_without_idle() -> None:
    found = net_energy(reading(100.0, "J", "counter", "package0"), 10.0, 4.0)
    assert found.value == pytest.approx(60.0)
    assert found.scope == "package0"


def test_net_has_a_reason_when_it_has_no_value() -> None:
    gross = reading(100.0, "J", "counter", "package0")
    assert "not measured before" in (net_energy(gross, None, 4.0).reason or "")
    assert "busy" in (net_energy(gross, 30.0, 4.0).reason or "")
    assert net_energy(missing("J", "gone"), 1.0, 4.0).reason == "gone"


def test_idle_power_is_energy_over_time() -> None:
    clock = FakeClock()
    sensors = [FakeEnergy("rapl", joules(40, "package0")), FakeEnergy("codecarbon", joules(9, "host", "modelled"))]
    found = idle_power(sensors, "cpu", seconds=2.0, clock=clock, sleep=clock.advance)
    assert found.value == pytest.approx(20.0)
    assert (found.unit, found.grade, found.scope) == ("W", "counter", "package0")


def test_idle_power_that_cannot_be_measured() -> None:
    found = idle_power([], "cuda", sleep=lambda _seconds: None)
    assert found.value is None
    assert found.unit == "W"
