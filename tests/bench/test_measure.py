"""What lies outside a case's measuring window leaves nothing inside it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import measure, workloads
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
