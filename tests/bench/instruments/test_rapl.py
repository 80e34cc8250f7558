"""RAPL against fake powercap trees: which domains are added, wraps, and counters that cannot be trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.instruments import EnergySensor, rapl
from bench.instruments.rapl import Odometer, Rapl, find_domains, is_virtual
from tests.bench.instruments.fakes import RANGE_UJ, FakeClock, FakePowercap


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tree(tmp_path: Path) -> FakePowercap:
    """Two packages, the first with core, uncore and dram, the second with dram; psys and mmio beside them."""
    tree = FakePowercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0", 1_000_000)
    tree.zone("intel-rapl:0/intel-rapl:0:0", "core", 900_000)
    tree.zone("intel-rapl:0/intel-rapl:0:1", "uncore", 10_000)
    tree.zone("intel-rapl:0/intel-rapl:0:2", "dram", 500_000)
    tree.zone("intel-rapl:1", "psys", 7_000_000)
    tree.zone("intel-rapl:2", "package-1", 2_000_000)
    tree.zone("intel-rapl:2/intel-rapl:2:0", "dram", 600_000)
    tree.zone("intel-rapl-mmio:0", "package-0", 3_000_000)
    return tree


def opened(tree: FakePowercap, clock: FakeClock) -> Rapl:
    sensor = Rapl(tree.sysfs, proc=tree.sysfs.parent / "proc", clock=clock, poll_period_s=None)
    found = sensor.probe()
    assert found.available, found.reason
    return sensor


def test_packages_and_drams_once_each_without_psys_core_or_mmio(tree: FakePowercap) -> None:
    assert [domain.scope for domain in find_domains(tree.sysfs)] == ["dram0", "dram1", "package0", "package1"]
    assert all("mmio" not in str(domain.path) for domain in find_domains(tree.sysfs))


def test_mmio_alone_is_better_than_nothing(tmp_path: Path) -> None:
    tree = FakePowercap(tmp_path)
    tree.zone("intel-rapl-mmio:0", "package-0")
    assert [domain.scope for domain in find_domains(tree.sysfs)] == ["package0"]


def test_dies_of_one_package_are_domains_of_their_own(tmp_path: Path) -> None:
    tree = FakePowercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0-die-0")
    tree.zone("intel-rapl:1", "package-0-die-1")
    assert [domain.scope for domain in find_domains(tree.sysfs)] == ["package0die0", "package0die1"]


def test_joules_of_a_window(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    assert isinstance(sensor, EnergySensor)
    sensor.start()
    clock.advance(2)
    tree.set("intel-rapl:0", 1_000_000 + 100_000_000)
    tree.set("intel-rapl:0/intel-rapl:0:2", 500_000 + 8_000_000)
    tree.set("intel-rapl:1", 7_000_000 + 900_000_000)
    found = sensor.stop()
    assert set(found) == set(sensor.measures)
    assert found["energy_j/package0"].value == pytest.approx(100.0)
    assert found["energy_j/dram0"].value == pytest.approx(8.0)
    assert found["energy_j/package1"].value == 0.0
    assert found["energy_j/package0"].grade == "counter"
    assert found["energy_j/package0"].scope == "package0"


def test_a_second_window_starts_at_zero(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    for energy_uj in (51_000_000, 61_000_000):
        sensor.start()
        clock.advance(1)
        tree.set("intel-rapl:0", energy_uj)
        found = sensor.stop()
    assert found["energy_j/package0"].value == pytest.approx(10.0)


def test_wraps_between_polls_are_added_and_reported(tree: FakePowercap, clock: FakeClock) -> None:
    start_uj = RANGE_UJ - 50_000_000
    tree.set("intel-rapl:0", start_uj)
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(5)
    tree.set("intel-rapl:0", 150_000_000)  # 200 J later
    sensor.poll()
    for _ in range(50):  # a lap of the whole counter: it passes its start and wraps again
        clock.advance(5)
        now_uj = int((tree.powercap / "intel-rapl:0/energy_uj").read_text())
        tree.set("intel-rapl:0", (now_uj + 6_000_000_000) % RANGE_UJ)
        sensor.poll()
    found = sensor.stop()
    assert found["energy_j/package0"].value == pytest.approx(200 + 50 * 6000)
    assert sensor.findings()["wraps"]["package0"] == 2
    assert sensor.findings()["wraps"]["package1"] == 0


def test_a_wrap_seen_only_at_the_end(tree: FakePowercap, clock: FakeClock) -> None:
    tree.set("intel-rapl:2", RANGE_UJ - 1_000_000)
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(1)
    tree.set("intel-rapl:2", 4_000_000)
    assert sensor.so_far()["energy_j/package1"].value == pytest.approx(5.0)
    assert sensor.stop()["energy_j/package1"].value == pytest.approx(5.0)


def test_a_wrap_without_a_known_range_is_not_guessed(tmp_path: Path, clock: FakeClock) -> None:
    tree = FakePowercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0", 5_000_000, range_uj=None)
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(1)
    tree.set("intel-rapl:0", 1_000)
    found = sensor.stop()["energy_j/package0"]
    assert found.value is None
    assert "max_energy_range_uj" in (found.reason or "")


def test_a_poll_that_came_too_late_is_refused() -> None:
    """262 kJ at 2 kW last 131 s: after that a second wrap could hide."""
    odometer = Odometer(0, RANGE_UJ, 0)
    odometer.advance(10_000_000, 140 * 10**9)
    assert "more than once" in (odometer.lost or "")


def test_a_reset_counter_is_not_a_wrap() -> None:
    odometer = Odometer(100_000_000, RANGE_UJ, 0)
    odometer.advance(0, 10**9)  # as a wrap: 262 kJ within one second
    assert "reset" in (odometer.lost or "")


def test_a_domain_that_vanishes_within_the_window(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(1)
    tree.set("intel-rapl:2", 3_000_000)
    shutil.rmtree(tree.powercap / "intel-rapl:0")
    sensor.poll()
    found = sensor.stop()
    assert found["energy_j/package0"].value is None
    assert "vanished" in (found["energy_j/package0"].reason or "")
    assert found["energy_j/package1"].value == pytest.approx(1.0)


def test_a_domain_that_comes_back_stays_missing(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(1)
    (tree.powercap / "intel-rapl:0/energy_uj").rename(tree.powercap / "aside")
    sensor.poll()
    (tree.powercap / "aside").rename(tree.powercap / "intel-rapl:0/energy_uj")
    clock.advance(1)
    assert sensor.stop()["energy_j/package0"].value is None


def test_a_domain_gone_before_the_window(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    shutil.rmtree(tree.powercap / "intel-rapl:0")
    sensor.start()
    clock.advance(1)
    found = sensor.stop()
    assert "start of the window" in (found["energy_j/package0"].reason or "")
    assert found["energy_j/package1"].value == 0.0


def test_a_window_below_ten_updates_is_refused(tree: FakePowercap, clock: FakeClock) -> None:
    sensor = opened(tree, clock)
    sensor.start()
    clock.advance(0.005)
    found = sensor.stop()["energy_j/package0"]
    assert found.value is None
    assert "hint: measure more steps" in (found.reason or "")


def test_permission_denied_says_how_to_get_it(tree: FakePowercap, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(rapl, "_read_int", refuse)
    found = Rapl(tree.sysfs).probe()
    assert not found.available
    assert "root only" in found.reason
    for way in ("chmod a+r", "udev", "setcap"):
        assert way in (found.hint or "")


def test_nothing_there(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags\t\t: fpu vme\n")
    found = Rapl(tmp_path / "sys", proc=proc).probe()
    assert not found.available
    assert "modprobe" in (found.hint or "")


def test_nothing_there_in_a_virtual_machine(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags\t\t: fpu hypervisor vme\n")
    assert is_virtual(proc)
    found = Rapl(tmp_path / "sys", proc=proc).probe()
    assert "virtual machine" in found.reason
    assert "bare metal" in (found.hint or "")


def test_powercap_without_packages(tmp_path: Path) -> None:
    tree = FakePowercap(tmp_path)
    tree.zone("intel-rapl:0", "psys")
    assert not Rapl(tree.sysfs).probe().available


def test_pyrapl_is_asked_first_where_it_works(tree: FakePowercap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two zones claim package 0; the one that pyRAPL opened is taken."""
    tree.zone("intel-rapl:9", "package-0")
    monkeypatch.setattr(rapl, "SYSFS", tree.sysfs)
    monkeypatch.setattr(rapl, "_pyrapl_paths", lambda: frozenset({str(tree.powercap / "intel-rapl:9")}))
    found = {domain.scope: domain.path.name for domain in find_domains(tree.sysfs)}
    assert found["package0"] == "intel-rapl:9"
    assert found["package1"] == "intel-rapl:2"


def test_the_real_pyrapl_never_breaks_the_search() -> None:
    assert isinstance(rapl._pyrapl_paths(), frozenset)
