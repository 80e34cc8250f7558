"""What lies outside a case's measuring window leaves nothing inside it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import measure, workloads
from bench.case import Case
from bench.casefolder import Job
from bench.display import describe_progress
from bench.instruments.table import Window
from lmopt.recipe import Recipe
from lmopt.step import Step


class State:
    """A training that refers to itself, as one with torch's first optimizer does."""

    def __init__(self) -> None:
        self.itself = self


def test_the_warm_up_s_training_is_gone_before_the_next_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[State]] = []

    def start(*_: Any, **__: Any) -> State:
        state = State()
        built.append(weakref.ref(state))
        return state

    def train(_state: State, _batches: Any) -> Iterator[Step]:
        yield Step(1, 64, notes={"compile_time_s": 2.0})
        yield Step(2, 64)

    monkeypatch.setattr(workloads, "start", start)
    monkeypatch.setattr(workloads, "train", train)
    monkeypatch.setattr(workloads, "batches", lambda *_, **__: None)
    recipe = Recipe.model_validate({"model": {"layers": 1, "width": 8, "heads": 1}, "tokens": 100_000})
    gc.disable()
    try:
        assert measure._warm_up(recipe, 0, Path()) == 2.0
        assert [one() for one in built] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", None), ("cpu", 40.0)])
def test_a_case_on_the_processor_is_not_credited_with_a_gpu_s_idle_power(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, expected: float | None
) -> None:
    monkeypatch.setattr(workloads, "device", lambda: torch.device(device))
    monkeypatch.setattr(workloads, "prepare", lambda *_: iter(()))
    monkeypatch.setattr(workloads, "prepared", lambda _out: {})
    opened: list[dict[str, Any]] = []

    class Seen(Window):
        def __init__(self, **arguments: Any) -> None:
            opened.append(arguments)
            super().__init__(sensors=[], **arguments)

    monkeypatch.setattr(measure, "Window", Seen)
    case = Case(id="a" * 16, kind="prepare", purpose="corpus", arm="dense", scale="s", spec={"stage": "corpus"})
    assert measure.prepare(Job(case=case, parents={}, idle_power_w=40.0), tmp_path).status == "ok"
    assert opened == [{"device": "cpu", "idle_power_w": expected}]


def test_progress_calls_a_bound_of_the_steps_one() -> None:
    pace = SimpleNamespace(most_steps=25, may_grow=True)
    state: Any = SimpleNamespace(total_steps=40, pace=pace)
    shown = {"done": 3, "unit": "steps", "total": 40}
    assert describe_progress(shown | measure._bound(state)) == "3 of at most 25 steps"
    pace.may_grow = False
    assert describe_progress(shown | measure._bound(state)) == "3/25 steps"
    pace.most_steps = 40
    assert measure._bound(state) == {}
    assert describe_progress({"done": 3, "unit": "parts"}) == "3 parts"
