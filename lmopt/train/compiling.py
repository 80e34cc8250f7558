"""A training's loss compiled before the step that needs it (letters: see loop.py)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lmopt.compute import memory
from lmopt.compute.pace import Update
from lmopt.train import chance
from lmopt.train.batch import Batch

if TYPE_CHECKING:
    from lmopt.train.loop import TrainState


class CannotCompile(RuntimeError):
    """A step that the recipe wants compiled, and torch's compiler failed; the message says at what."""

    def __init__(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", None)  # torch wraps what a backend raised
        found = _first_line(cause if isinstance(cause, Exception) else error)
        super().__init__(
            f"{found}\nhint: `lmbench doctor` says whether a compiler is missing; `compile: auto` goes on without one, "
            "`compile: false` trains the step as it is written"
        )


def compile_for(state: TrainState, batch: Batch, update: Update) -> tuple[Update, float]:
    """Compile what a step needs; the step, in smaller parts where memory ran out and the pace may choose, and seconds.

    The first pass at a size is this one, so that here is where its memory may be too little.
    """
    seconds, generators = 0.0, chance.states(state.device)
    while True:
        begin = time.monotonic()
        try:
            return update, seconds + _compile(state, next(batch.parts(update.micro)))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.may_have_run_out(error):
                raise
            micro = state.pace.back_off(update.micro or len(batch.inputs_BL), error)
        update = replace(update, micro=micro)
        state.forget_step(generators)  # only here, where the error is forgotten: its frames held what had been computed
        memory.economise()
        seconds += time.monotonic() - begin


def _compile(state: TrainState, part: Batch) -> float:
    """Compile forward and backward on a part of a batch, leaving no trace in the state. Returns the seconds it took.

    Where the recipe leaves the choice to us and the compiler fails, the training goes on as it was written. Want of
    memory is no failure of the compiler's.
    """
    begin = time.monotonic()
    generators = chance.states(state.device)
    try:
        with state.compute.forward():
            losses = state.losses(part)
        (losses.cross_entropy + losses.auxiliary).backward()
    except Exception as error:
        if memory.may_have_run_out(error):
            raise
        if state.recipe.compile != "auto" or state.eager is None:
            raise CannotCompile(error) from error
        state.loss, state.eager = state.eager, None
        state.not_compiled = _first_line(error)
    state.forget_step(generators)
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)
    return time.monotonic() - begin


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
