"""Training one model: a generator of finished steps that the caller times, meters and stops from outside.

Letters: B sequences, L tokens a sequence. Read `train` from top to bottom; `_update` is one optimizer step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmopt.arch import transformer
from lmopt.compute import memory
from lmopt.compute.precision import Compute
from lmopt.recipe import Recipe, builder
from lmopt.step import Step

REPORT_EVERY = 50
"""Steps between two readings of what the model says of itself (router load and the like)."""


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite: a result of the run, not a fault of the program."""

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        super().__init__(f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}")
        self.step = step
        self.loss = loss
        self.grad_norm = grad_norm


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A step whose work was handed to the device but whose numbers were not read yet."""

    step: int
    numbers: Tensor
    """(2,) float32: mean cross-entropy in nats a token, global gradient norm before clipping."""
    notes: dict[str, float]


@dataclass
class TrainState:
    """Everything that changes while a model trains, and what was decided before it began."""

    recipe: Recipe
    seed: int
    horizon: float
    device: torch.device
    total_steps: int
    model: Any
    """The Transformer; float32 parameters."""
    loss: Callable[[Tensor, Tensor], Any]
    """`model.loss`, compiled where the recipe says so."""
    optimizer: Any
    share: Callable[[int], float]
    """Step (0 for the first) -> share of the peak learning rate."""
    compute: Compute
    allocator: memory.Allocator
    step: int = 0
    """Updates done. The step that was yielded last may be one behind: see `unread`."""
    unread: deque[Dispatched] = field(default_factory=deque)
    """Steps done whose numbers were not yielded yet; saved with a checkpoint, so that none is lost."""


def start(recipe: Recipe, *, seed: int, horizon: float = 1.0, device: torch.device | str = "cpu") -> TrainState:
    """A model at its initialisation and all that trains it. Fails here, before any work, when something cannot fit.

    Args:
        seed: draws the initialisation (with each parameter's name) and seeds torch's generators.
        horizon: share of `recipe.tokens` to train for; the learning rate anneals fully within it.

    Raises:
        ValueError: the vocabulary is not set, or the horizon is not a positive number.
        UnsupportedPrecision: the device cannot compute in the recipe's number format.
    """
    device = torch.device(device)
    if recipe.model.vocab is None:
        raise ValueError("model.vocab is not set\nhint: a suite fills it in from its tokenizer")
    if not (math.isfinite(horizon) and horizon > 0):
        raise ValueError(f"horizon must be a positive number, got {horizon}")
    allocator = memory.tune_allocator()
    compute = builder(recipe.precision)(recipe.precision, device)
    torch.manual_seed(seed)
    model = transformer.build(recipe, seed=seed, device=device)
    total_steps = recipe.steps(horizon)
    return TrainState(
        recipe=recipe,
        seed=seed,
        horizon=horizon,
        device=device,
        total_steps=total_steps,
        model=model,
        loss=torch.compile(model.loss, dynamic=False) if recipe.compile else model.loss,
        optimizer=builder(recipe.optimizer)(recipe.optimizer, model),
        share=builder(recipe.schedule)(recipe.schedule, total_steps),
        compute=compute,
        allocator=allocator,
    )


def train(state: TrainState, batches: Iterable[Tensor], *, lag: int | None = None) -> Iterator[Step]:
    """Train from `state.step` to `state.total_steps`, yielding each finished step.

    Args:
        batches: one (B, L+1) int64 tensor of token numbers a step, beginning with the batch of step `state.step`.
        lag: steps handed to the device before the first one's numbers are read, so that it never waits for Python.
            Default: 1 where the device works apart from Python, 0 on the CPU. The yielded steps are the same.

    Raises:
        Diverged: the loss or the gradient norm is not finite.
        ValueError: a batch has another shape than the recipe says, or the batches run out.
    """
    lag = lag if lag is not None else int(state.device.type != "cpu")
    state.model.train()
    batches = iter(batches)
    while len(state.unread) > lag:
        yield _read(state)
    compile_pending = state.recipe.compile
    while state.step < state.total_steps:
        tokens_BL1 = _next_batch(state, batches)
        notes = {}
        if compile_pending:
            notes["compile_time_s"] = _compile(state, tokens_BL1)
            compile_pending = False
        share = state.share(state.step)
        numbers = _update(state, tokens_BL1, share)
        state.step += 1
        notes["lr"] = share * state.recipe.optimizer.lr
        if state.step % REPORT_EVERY == 0 or state.step == state.total_steps:
            notes.update(state.model.report())
        state.unread.append(Dispatched(state.step, numbers, notes))
        while len(state.unread) > lag:
            yield _read(state)
    while state.unread:
        yield _read(state)


def _update(state: TrainState, tokens_BL1: Tensor, share: float) -> Tensor:
    """One optimizer step on one batch, in equal micro-batches. Returns (2,): cross-entropy and gradient norm.

    Both are means over micro-batches; these hold equally many tokens, so the cross-entropy is the batch's own mean.
    An auxiliary loss (a router's balance) is computed within each micro-batch, as it would be on a device of its own.
    """
    micro = state.recipe.batching.micro_sequences or len(tokens_BL1)
    passes = len(tokens_BL1) // micro
    total = torch.zeros((), device=state.device)
    for part in tokens_BL1.split(micro):
        with state.compute.forward():
            losses = state.loss(part[:, :-1], part[:, 1:])
        ((losses.cross_entropy + losses.auxiliary) / passes).backward()
        total += losses.cross_entropy.detach()
    norm = state.optimizer.step(share)
    return torch.stack([total / passes, norm])


def _read(state: TrainState) -> Step:
    """The oldest unread step as plain numbers. Waits for the device; says so when training diverged."""
    done = state.unread.popleft()
    loss, norm = done.numbers.tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(done.step, loss, norm)
    tokens = state.recipe.batching.tokens
    return Step(index=done.step, tokens=tokens, loss=loss, notes={**done.notes, "grad_norm": norm})


def _next_batch(state: TrainState, batches: Iterator[Tensor]) -> Tensor:
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"batches ran out at step {state.step} of {state.total_steps}")
    wanted = (state.recipe.batching.sequences, state.recipe.batching.length + 1)
    if tuple(batch.shape) != wanted:
        raise ValueError(f"step {state.step}: a batch of shape {tuple(batch.shape)}, expected {wanted} (B, L+1)")
    return batch.to(state.device, non_blocking=True)


def _compile(state: TrainState, tokens_BL1: Tensor) -> float:
    """Compile forward and backward on a real batch, leaving no trace in the state. Returns the seconds it took."""
    begin = time.monotonic()
    kept = random_state(state.device)
    part = tokens_BL1[: state.recipe.batching.micro_sequences or len(tokens_BL1)]
    with state.compute.forward():
        losses = state.loss(part[:, :-1], part[:, 1:])
    (losses.cross_entropy + losses.auxiliary).backward()
    state.model.zero_grad(set_to_none=True)
    restore_random_state(state.device, kept)
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)
    return time.monotonic() - begin


def random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's generators as bytes, by device: all that a technique with noise needs to go on where it stopped."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Take over what `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
