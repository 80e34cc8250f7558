"""The modelled fallback: how it adds up, how it fails, and that it stays quiet and cheap."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from bench.instruments import EnergySensor
from bench.instruments.codecarbon import CodeCarbon, cache_folder, rated_power_w
from tests.bench.instruments.fakes import FakeClock, FakePower


def opened(power: FakePower, clock: FakeClock) -> CodeCarbon:
    sensor = CodeCarbon(lambda: power, clock=clock, sample_period_s=None)
    assert sensor.probe().available
    return sensor


def test_power_of_each_second_is_added() -> None:
    clock, power = FakeClock(), FakePower(50.0)
    sensor = opened(power, clock)
    assert isinstance(sensor, EnergySensor)
    sensor.start()
    clock.advance(2)
    sensor.sample()
    power.watts = 100.0
    clock.advance(1)
    found = sensor.stop()["energy_j/host"]
    assert found.value == pytest.approx(200.0)
    assert found.grade == "modelled"
    assert found.scope == "host"


def test_it_is_opened_once_a_window() -> None:
    clock = FakeClock()
    sensor = opened(FakePower(10.0), clock)
    for _ in range(2):
        sensor.start()
        clock.advance(1)
        found = sensor.stop()["energy_j/host"]
    assert found.value == pytest.approx(10.0)


def test_a_model_that_fails_within_the_window() -> None:
    clock, power = FakeClock(), FakePower()
    sensor = opened(power, clock)
    sensor.start()
    clock.advance(1)
    power.broken = True
    found = sensor.stop()["energy_j/host"]
    assert found.value is None
    assert "no load today" in (found.reason or "")


def test_too_short_a_window() -> None:
    clock = FakeClock()
    sensor = opened(FakePower(), clock)
    sensor.start()
    clock.advance(0.05)
    assert "shorter than 0.1 s" in (sensor.stop()["energy_j/host"].reason or "")


def test_a_model_that_does_not_open() -> None:
    def broken() -> FakePower:
        raise KeyError("TDP")

    sensor = CodeCarbon(broken, sample_period_s=None)
    assert "KeyError" in sensor.probe().reason
    sensor.start()
    assert sensor.stop()["energy_j/host"].value is None


def test_it_is_said_when_the_package_is_absent() -> None:
    def absent() -> FakePower:
        raise ImportError("codecarbon")

    found = CodeCarbon(absent).probe()
    assert not found.available
    assert found.hint == "pip install codecarbon"


def test_the_rated_power_is_looked_up_once(tmp_path: Path) -> None:
    rated_power_w.cache_clear()
    first = rated_power_w(tmp_path)
    kept = json.loads((tmp_path / "rated_power.json").read_text())
    assert list(kept.values()) == [list(first)]
    key = next(iter(kept))
    (tmp_path / "rated_power.json").write_text(json.dumps({key: ["Some CPU", 123.0]}))
    rated_power_w.cache_clear()
    start = time.perf_counter()
    assert rated_power_w(tmp_path) == ("Some CPU", 123.0)
    assert time.perf_counter() - start < 0.5
    rated_power_w.cache_clear()


def test_the_real_model_is_quiet(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = CodeCarbon(sample_period_s=None)
    found = sensor.probe()
    assert found.available, found.reason
    assert "no evidence" in found.reason
    sensor.start()
    sensor.sample()
    assert sensor.findings()["rated_power_w"] > 0
    monkeypatch.setattr(logging, "lastResort", None)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_the_cache_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lmbench"
