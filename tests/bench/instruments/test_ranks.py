"""Many ranks, one training: a device is counted once, a gap is not a zero."""

from __future__ import annotations

import pytest

from bench.instruments.ranks import Rank, combine
from bench.record import missing, reading


def gpu(index: int, joules: float) -> dict[str, object]:
    return {f"energy_j/gpu{index}": reading(joules, "J", "counter", f"gpu{index}")}


def rank(
    host: str = "a",
    duration_s: float = 10.0,
    device: str = "cuda:0",
    devices: dict[str, str] | None = None,
    **readings: object,
) -> Rank:
    memory = {"peak_memory_bytes": reading(100, "B", "counted", "gpu0")}
    return Rank(host, device, duration_s, memory | readings, devices or {})


def test_ranks_of_one_host_that_see_the_same_devices_count_each_once_by_the_longest_window() -> None:
    both = gpu(0, 50.0) | gpu(1, 70.0)
    longer = gpu(0, 52.0) | gpu(1, 71.0)
    found = combine([rank(**both), rank(duration_s=11.0, device="cuda:1", **longer)])
    assert found["energy_j"].value == 52.0 + 71.0
    assert found["energy_j"].grade == "counter"
    assert found["train_time_s"].value == 11.0
    assert found["peak_memory_bytes"].value == 200


def test_each_rank_measures_its_own_device_and_they_are_added() -> None:
    first = rank(**gpu(0, 50.0), devices={"gpu0": "aa"})
    second = rank(device="cuda:1", **gpu(1, 70.0), devices={"gpu1": "bb"})
    found = combine([second, first])
    assert found["energy_j"].value == 120.0
    assert {name: one.value for name, one in found.items() if name.startswith("energy_j/")} == {
        "energy_j/a/gpu0": 50.0,
        "energy_j/a/gpu1": 70.0,
    }


def test_ranks_that_are_shown_one_device_each_do_not_share_it_for_its_name() -> None:
    def shown(device: str, joules: float, duration_s: float = 10.0) -> Rank:
        return rank(duration_s=duration_s, **gpu(0, joules), devices={"gpu0": device})

    assert combine([shown("aa", 50.0), shown("bb", 70.0)])["energy_j"].value == 120.0
    assert combine([shown("aa", 50.0), shown("bb", 70.0), shown("aa", 51.0, 11.0)])["energy_j"].value == 121.0
    whole = combine([shown("aa", 50.0), shown("bb", 70.0), rank(**gpu(0, 60.0))])
    assert whole["energy_j"].value == 180.0, "a third, of which nobody knows that it is one of the two"
    seen_anew = rank(device="cuda:1", **gpu(1, 70.0), devices={"gpu1": "aa"})
    assert combine([shown("aa", 50.0), seen_anew])["energy_j"].value == 50.0, "one device under two names"


def test_a_rank_whose_device_was_not_measured_leaves_no_sum() -> None:
    blind = rank(device="cuda:1", energy_j=missing("J", "nvml: NVML does not start"))
    energy = combine([rank(**gpu(0, 50.0)), blind])["energy_j"]
    assert energy.value is None
    assert "NVML does not start" in (energy.reason or "")
    sharing = rank(energy_j=missing("J", "nvml: NVML does not start"))
    assert combine([rank(**gpu(0, 50.0)), sharing])["energy_j"].value == 50.0, "another measured the same device"


def test_equal_names_on_two_hosts_are_two_devices() -> None:
    found = combine([rank("a", **gpu(0, 50.0)), rank("b", **gpu(0, 60.0))])
    assert found["energy_j"].value == 110.0
    assert {name for name in found if name.startswith("energy_j/")} == {"energy_j/a/gpu0", "energy_j/b/gpu0"}


def test_packages_of_a_cpu_host_are_shared_by_its_ranks() -> None:
    package = {"energy_j/package0": reading(30.0, "J", "counter", "package0")}
    found = combine([rank(device="cpu", **package), rank(device="cpu", **package)])
    assert found["energy_j"].value == 30.0


def test_a_device_that_one_of_its_ranks_could_not_read_is_read_by_the_other() -> None:
    broken = {"energy_j/gpu0": missing("J", "the driver went away", "gpu0")}
    assert combine([rank(duration_s=20.0, **broken), rank(**gpu(0, 50.0))])["energy_j"].value == 50.0


def test_one_unmeasured_host_leaves_no_sum() -> None:
    broken = {"energy_j/gpu0": missing("J", "the driver went away", "gpu0")}
    energy = combine([rank("a", **gpu(0, 50.0)), rank("b", **broken)])["energy_j"]
    assert energy.value is None
    assert "1 of 2" in (energy.reason or "")
    assert "the driver went away" in (energy.reason or "")


def test_the_weakest_grade_is_the_sums() -> None:
    sampled = {"energy_j/gpu0": reading(60.0, "J", "integrated", "gpu0")}
    assert combine([rank("a", **gpu(0, 50.0)), rank("b", **sampled)])["energy_j"].grade == "integrated"


def test_no_rank_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no rank"):
        combine([])
