"""The calibration: rates from a fake clock, the cache, and what happens when the cache cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import calibrate
from bench.calibrate import TRAINING_SHARE, Calibration


def example(env: str) -> Calibration:
    return Calibration(
        env=env,
        device="cpu",
        threads=2,
        matmul_flops_per_s={"fp32": {128: 1e9, 256: 3e9, 512: 9e9}, "bf16": {128: 2e9, 256: 8e9, 512: 4e9}},
        bytes_per_s=1e10,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Environments that were measured, in order; nothing is really measured."""
    asked: list[str] = []

    def measure(env: str) -> Calibration:
        asked.append(env)
        return example(env)

    monkeypatch.setattr(calibrate, "measure", measure)
    return asked


def test_rates_are_flops_over_the_shortest_time() -> None:
    ticks = iter(range(0, 10**9, 1000))
    found = calibrate.measure("0123456789", clock=lambda: next(ticks), widths=(8,))
    flops = 2 * calibrate.ROWS * 8 * 8
    assert found.matmul_flops_per_s["fp32"][8] == pytest.approx(flops / 1e-6)
    assert found.matmul_flops_per_s["bf16"][8] == pytest.approx(flops / 1e-6)
    assert found.bytes_per_s == pytest.approx(2 * calibrate.COPY_BYTES / 1e-6)


def test_training_keeps_a_share_of_the_median_width() -> None:
    found = example("0123456789")
    assert found.train_flops_per_s == {"fp32": TRAINING_SHARE * 3e9, "bf16": TRAINING_SHARE * 4e9}
    assert found.peak_flops_per_s == {"fp32": 9e9, "bf16": 8e9}


def test_it_is_measured_once(tmp_path: Path, measured: list[str]) -> None:
    first = calibrate.calibrate(folder=tmp_path)
    assert calibrate.calibrate(folder=tmp_path) == first
    assert calibrate.cached(folder=tmp_path) == first
    assert len(measured) == 1


def test_another_environment_is_measured_anew(tmp_path: Path, measured: list[str]) -> None:
    calibrate.calibrate(folder=tmp_path, facts={"kernel": "1"})
    calibrate.calibrate(folder=tmp_path, facts={"kernel": "2"})
    assert len(set(measured)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"env": 3}', '{"schema_version": 0}'])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, measured: list[str], text: str) -> None:
    calibrate.calibrate(folder=tmp_path)
    next(tmp_path.iterdir()).write_text(text)
    assert calibrate.cached(folder=tmp_path) is None
    calibrate.calibrate(folder=tmp_path)
    assert len(measured) == 2


def test_a_calibration_of_another_machine_is_not_used(tmp_path: Path, measured: list[str]) -> None:
    kept = calibrate.calibrate(folder=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_text(kept.model_copy(update={"env": "ffffffffff"}).model_dump_json())
    assert calibrate.cached(folder=tmp_path) is None
    assert measured == [kept.env]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "file").write_text("")
    assert calibrate.calibrate(folder=tmp_path / "file").device == "cpu"
    assert len(measured) == 1
