"""The calibration: rates from a fake clock, the cache, and what happens when the cache cannot be used."""

from __future__ import annotations

import math
import resource
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench import calibrate
from bench.api import this_machine
from bench.calibrate import Calibration, better
from lmopt import cost, cost_memory
from lmopt.recipe import Recipe

FACTS = {"kernel": "1", "load": [0.5, 0.0, 0.0], "cores": {"usable": 2}}
BUSY = {**FACTS, "load": [4.0, 0.0, 0.0]}


def example(env: str, *, busy: bool = False) -> Calibration:
    return Calibration(
        env=env,
        device="cpu",
        threads=2,
        matmul_flops_per_s={"fp32": {128: 1e9, 256: 3e9, 512: 9e9}, "bf16": {128: 2e9, 256: 8e9, 512: 4e9}},
        train_flops_per_s={"fp32": 2e9, "bf16": 3e9},
        fixed_s={"fp32": 2e-3, "bf16": 3e-3},
        bytes_per_s=1e10,
        busy=busy,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Environments that were measured, in order; nothing is really measured."""
    asked: list[str] = []

    def measure(env: str, *, busy: bool) -> Calibration:
        asked.append(env)
        return example(env, busy=busy)

    monkeypatch.setattr(calibrate, "_measured_apart", measure)
    return asked


def test_an_accelerator_is_given_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recipe] = []
    monkeypatch.setattr(calibrate, "_step_s", lambda recipe, *_: asked.append(recipe) or 1.0)
    for device in ("cpu", "cuda"):
        calibrate._train_rate({}, device, lambda: 0)
    flops = [cost.train_flops_per_token(recipe).executed * recipe.batching.tokens for recipe in asked]
    assert flops[0] < 1e11
    assert flops[1] > 2e12
    assert cost_memory.peak_memory_bytes(asked[1]) < 8 * 2**30
    product = 2 * calibrate.DEVICE_ROWS * max(calibrate.DEVICE_WIDTHS) ** 2
    assert product > 1e12  # a millisecond at a petaflop a second


def test_kernels_are_compiled_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new machine that takes eight seconds: as the first step's they made bfloat16 a hundred times too slow."""
    from lmopt.arch import fused  # what others borrow of this file needs no torch

    happened: list[str] = []
    monkeypatch.setattr(fused, "obstacle", lambda: happened.append("compiled"))
    monkeypatch.setattr(calibrate, "_others_s", lambda: happened.append("neighbours") or 0.0)
    monkeypatch.setattr(calibrate, "_step_s", lambda *_: happened.append("step") or 1.0)
    monkeypatch.setattr(calibrate, "_best_s", lambda *_: happened.append("product") or 1.0)
    calibrate.measure("0123456789", busy=False, widths=(8,))
    assert happened.count("step") == 6
    assert happened.index("compiled") == 0


def test_rates_are_flops_over_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_train_rate", lambda _parts, _device, _clock: 7.0)
    monkeypatch.setattr(calibrate, "_fixed_s", lambda _parts, _device, _clock: 0.5)
    monkeypatch.setattr(calibrate, "SLICE_S", 1e-5)
    monkeypatch.setattr(calibrate, "COPY_BYTES", 4096)
    ticks = iter(range(0, 10**9, 1000))
    found = calibrate.measure("0123456789", busy=False, clock=lambda: next(ticks), widths=(8,))
    flops = 2 * calibrate.ROWS * 8 * 8
    assert found.matmul_flops_per_s["fp32"][8] == pytest.approx(flops / 1e-6)
    assert found.matmul_flops_per_s["bf16"][8] == pytest.approx(flops / 1e-6)
    assert found.bytes_per_s == pytest.approx(2 * calibrate.COPY_BYTES / 1e-6)
    assert found.train_flops_per_s == {"fp32": 7.0, "bf16": 7.0, "bf16+moe": 7.0}
    assert found.fixed_s == {"fp32": 0.5, "bf16": 0.5, "bf16+moe": 0.5}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are counted on Linux")
def test_bandwidth_is_that_of_memory_and_not_of_new_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy may be the only one in its time."""

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    taken: list[int] = []

    def once(work: Callable[[], object], *_: object) -> float:
        before = faults()
        work()
        taken.append(faults() - before)
        return 1.0

    monkeypatch.setattr(calibrate, "_best_s", once)
    calibrate._bandwidth("cpu", lambda: 0)
    assert taken[0] < calibrate.COPY_BYTES / resource.getpagesize() / 100


@pytest.mark.parametrize(("others_s", "busy"), [(0.0, False), (1e6, True)])
def test_other_work_meanwhile_is_noticed(monkeypatch: pytest.MonkeyPatch, others_s: float, busy: bool) -> None:
    monkeypatch.setattr(calibrate, "_train_rate", lambda _parts, _device, _clock: 7.0)
    monkeypatch.setattr(calibrate, "_fixed_s", lambda _parts, _device, _clock: 0.5)
    monkeypatch.setattr(calibrate, "SLICE_S", 1e-5)
    monkeypatch.setattr(calibrate, "COPY_BYTES", 4096)
    readings = iter([100.0, 100.0 + others_s])
    monkeypatch.setattr(calibrate, "_others_s", lambda: next(readings))
    ticks = iter(range(0, 10**9, 1000))
    assert calibrate.measure("0123456789", busy=False, clock=lambda: next(ticks), widths=(8,)).busy is busy


def test_our_own_seconds_are_not_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """From fixed readings: what a real machine counts between two calls depends on who else is on it."""
    of_all = namedtuple("of_all", "user nice system idle iowait irq softirq steal guest guest_nice")
    monkeypatch.setattr(psutil, "cpu_times", lambda: of_all(100.0, 1.0, 20.0, 500.0, 30.0, 0.5, 0.25, 4.0, 7.0, 8.0))
    own = SimpleNamespace(user=40.0, system=5.0, children_user=90.0, children_system=9.0)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: own))
    # neither waiting nor what guests have, which is in `user` already
    assert calibrate._others_s() == 100.0 + 1.0 + 20.0 + 0.5 + 0.25 + 4.0 - 45.0


def test_real_readings_are_read() -> None:
    assert 0 < calibrate._others_s() < math.inf


def test_a_failure_of_the_measuring_process_says_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "false")
    with pytest.raises(calibrate.CalibrationError, match="failed with code 1"):
        calibrate._measured_apart("0123456789", busy=False)


def test_a_machine_too_busy_to_be_measured_is_planned_without_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMEOUT_S", 0.01)
    monkeypatch.setattr(calibrate, "cached", lambda **_: None)
    with pytest.raises(calibrate.CalibrationError, match="very busy"):
        calibrate.calibrate()
    assert this_machine(calibrate=True).flops_per_s == {}


def test_a_training_step_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmopt import cost
    from lmopt.recipe import Recipe

    monkeypatch.setattr(calibrate, "TRAIN_SHAPE", {"layers": 1, "width": 16, "heads": 2, "vocab": 64})
    monkeypatch.setattr(calibrate, "TRAIN_LENGTH", 8)
    ticks = iter(range(0, 10**12, 10**9))  # every look at the clock is a second later
    model = {**calibrate.TRAIN_SHAPE}
    recipe = Recipe.model_validate({"model": model, "batching": {"sequences": 4, "length": 8}, "tokens": 32})
    rate = calibrate._train_rate({"precision": {"kind": "fp32"}}, "cpu", lambda: next(ticks))
    assert rate == pytest.approx(cost.train_flops_per_token(recipe).executed * 4 * 8)
    monkeypatch.setattr(calibrate, "FIXED_SHAPE", {"layers": 3, "width": 16, "heads": 2, "vocab": 64})
    fixed_s = calibrate._fixed_s({"precision": {"kind": "fp32"}}, "cpu", lambda: next(ticks))
    assert fixed_s == pytest.approx(1 / 4), "a step of a second, over three layers and the ends"


def test_the_peak_is_the_best_width() -> None:
    assert example("0123456789").peak_flops_per_s == {"fp32": 9e9, "bf16": 8e9}


def test_a_busy_machine_is_measured_again_and_the_better_kept(tmp_path: Path, measured: list[str]) -> None:
    assert calibrate.calibrate(folder=tmp_path, facts=BUSY).busy
    assert calibrate.calibrate(folder=tmp_path, facts=BUSY).busy  # no better now
    assert not calibrate.calibrate(folder=tmp_path, facts=FACTS).busy
    calibrate.calibrate(folder=tmp_path, facts=FACTS)
    assert len(measured) == 2
    slow = example("0123456789").model_copy(
        update={"bytes_per_s": 1.0, "train_flops_per_s": {"fp32": 9e9, "bf16": 1.0}}
    )
    both = better(slow, example("0123456789"))
    assert both.bytes_per_s == 1e10
    assert both.train_flops_per_s == {"fp32": 9e9, "bf16": 3e9}
    assert both.fixed_s == {"fp32": 2e-3, "bf16": 3e-3}
    assert both.matmul_flops_per_s == slow.matmul_flops_per_s


def test_it_is_measured_once(tmp_path: Path, measured: list[str]) -> None:
    first = calibrate.calibrate(folder=tmp_path, facts=FACTS)
    assert calibrate.calibrate(folder=tmp_path, facts=FACTS) == first
    assert calibrate.cached(folder=tmp_path, env=first.env) == first
    assert len(measured) == 1


def test_another_environment_is_measured_anew(tmp_path: Path, measured: list[str]) -> None:
    calibrate.calibrate(folder=tmp_path, facts=FACTS)
    calibrate.calibrate(folder=tmp_path, facts={**FACTS, "kernel": "2"})
    assert len(set(measured)) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"env": 3}', '{"schema_version": 0}'])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, measured: list[str], text: str) -> None:
    kept = calibrate.calibrate(folder=tmp_path, facts=FACTS)
    next(tmp_path.iterdir()).write_text(text)
    assert calibrate.cached(folder=tmp_path, env=kept.env) is None
    kept = calibrate.calibrate(folder=tmp_path, facts=FACTS)
    assert len(measured) == 2


def test_a_calibration_of_another_machine_is_not_used(tmp_path: Path, measured: list[str]) -> None:
    kept = calibrate.calibrate(folder=tmp_path, facts=FACTS)
    path = next(tmp_path.iterdir())
    path.write_text(kept.model_copy(update={"env": "ffffffffff"}).model_dump_json())
    assert calibrate.cached(folder=tmp_path, env=kept.env) is None
    assert measured == [kept.env]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "file").write_text("")
    assert calibrate.calibrate(folder=tmp_path / "file").device == "cpu"
    assert len(measured) == 1
