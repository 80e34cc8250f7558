"""Training one model: a generator of finished steps that the caller times, meters and stops from outside.

Letters: B sequences, L tokens a sequence, P windows of a portion. Read `train` from top to bottom; `_update` is one
optimizer step.
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
from lmopt.arch.transformer import Losses
from lmopt.compute import memory
from lmopt.compute.pace import Scheduled, Update
from lmopt.compute.precision import Compute
from lmopt.recipe import Recipe, builder
from lmopt.step import Step
from lmopt.train import chance
from lmopt.train.batch import Batch
from lmopt.train.compiling import compile_for
from lmopt.train.team import Alone, Team

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
    tokens: int


@dataclass
class TrainState:
    """Everything that changes while a model trains, and what was decided before it began."""

    recipe: Recipe
    seed: int
    horizon: float
    device: torch.device
    pace: Scheduled
    """What each step holds, and how far the training is in the data."""
    model: Any
    """The Transformer, its parameters as the precision keeps them (float32, or bfloat16 for `bf16_sr`)."""
    loss: Callable[..., Losses]
    """(inputs, targets) or (inputs, targets, segments) -> what the recipe's objective makes of the model, compiled
    where the recipe says so."""
    eager: Callable[..., Losses] | None
    """The same before it was compiled; None where it was not."""
    optimizer: Any
    share: Callable[[float], float]
    """Training done after a step, in full steps -> share of the peak learning rate."""
    compute: Compute
    allocator: memory.Allocator
    team: Team = field(default_factory=Alone)
    """Whom it shares its batches with."""
    step: int = 0
    """Updates done. The step that was yielded last may be one behind: see `unread`."""
    unread: deque[Dispatched] = field(default_factory=deque)
    """Steps done whose numbers were not yielded yet; saved with a checkpoint, so that none is lost."""
    not_compiled: str | None = None
    """Why `compile: auto` came to nothing on a device that is compiled for."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; where batches grow by themselves, the most that there can be."""
        return self.pace.total_steps

    @property
    def yielded_tokens(self) -> int:
        """Tokens of the steps that were yielded."""
        return self.pace.portions * self.pace.tokens_a_portion - sum(step.tokens for step in self.unread)

    def losses(self, part: Batch) -> Losses:
        """What the objective makes of a part of a batch."""
        if part.segments_BL is None:
            return self.loss(part.inputs_BL, part.targets_BL)
        return self.loss(part.inputs_BL, part.targets_BL, part.segments_BL)

    def forget_step(self, generators: dict[str, Tensor]) -> None:
        """Stand as before the step that was begun: no gradients, and torch's generators where they were."""
        self.model.zero_grad(set_to_none=True)
        self.model.forget()
        chance.restore(self.device, generators)


def start(recipe: Recipe, *, seed: int, horizon: float = 1.0, device: torch.device | str = "cpu") -> TrainState:
    """A model at its initialisation and all that trains it. Fails here, before any work, when something cannot fit.

    Args:
        seed: draws the initialisation (with each parameter's name) and seeds torch's generators.
        horizon: share of `recipe.tokens` to train for; the learning rate anneals fully within it.

    Raises:
        ValueError: the vocabulary is not set, the horizon is not a positive number, or memory is too small.
        UnsupportedPrecision: the device cannot compute in the recipe's number format.
    """
    device = torch.device(device)
    if recipe.model.vocab is None:
        raise ValueError("model.vocab is not set\nhint: a suite fills it in from its tokenizer")
    if not (math.isfinite(horizon) and horizon > 0):
        raise ValueError(f"horizon must be a positive number, got {horizon}")
    allocator = memory.tune_allocator()
    compute = builder(recipe.precision)(recipe.precision, device)
    pace: Scheduled = builder(recipe.batching, "pace")(recipe.batching, recipe, horizon)
    torch.manual_seed(seed)
    model = transformer.build(recipe, seed=seed, device=device)
    compute.prepare(model)
    loss = builder(recipe.objective)(recipe.objective, model)
    return assemble(
        recipe, model, loss, seed=seed, horizon=horizon, device=device, pace=pace, compute=compute, allocator=allocator
    )


def assemble(
    recipe: Recipe,
    model: Any,
    loss: Callable[..., Losses],
    *,
    seed: int,
    horizon: float,
    device: torch.device,
    pace: Scheduled,
    compute: Compute,
    allocator: memory.Allocator,
    team: Team | None = None,
) -> TrainState:
    """A model that stands at its initialisation with its optimizer and schedule, and its loss compiled if it is to be.

    Args:
        team: whom it shares its batches with. Default: nobody.
    """
    compiles = recipe.compiles_on(device.type)
    return TrainState(
        recipe=recipe,
        seed=seed,
        horizon=horizon,
        device=device,
        pace=pace,
        model=model,
        loss=torch.compile(loss, dynamic=False) if compiles else loss,
        eager=loss if compiles else None,
        optimizer=builder(recipe.optimizer)(recipe.optimizer, model),
        share=builder(recipe.schedule)(recipe.schedule, pace.total_tokens / recipe.batching.tokens),
        compute=compute,
        allocator=allocator,
        team=team or Alone(),
    )


def train(state: TrainState, batches: Iterable[Tensor], *, lag: int | None = None) -> Iterator[Step]:
    """Train until the pace is finished, yielding each finished step.

    Args:
        batches: portions, each a (P, L+1) int64 tensor of token numbers, beginning with number `state.pace.portions`;
            (2, P, L+1) where documents are packed, (3, P, L+1) where only answers are learnt (lmopt.data.packing). A
            step of the kind `fixed` takes one.
        lag: steps handed to the device before the first one's numbers are read, so that it never waits for Python.
            Default: 1 where the device works apart from Python, 0 on the CPU. The yielded steps are the same.

    Raises:
        CannotCompile: the recipe wants the step compiled, and torch's compiler fails (lmopt.train.compiling).
        Diverged: the loss or the gradient norm is not finite.
        ValueError: a portion has another shape than the recipe says, or the portions run out.
    """
    lag = lag if lag is not None else int(state.device.type != "cpu")
    state.model.train()
    batches = iter(batches)
    while len(state.unread) > lag:
        yield from _hand_out(state)
    compiled: set[tuple[int, ...]] = set()
    while not state.pace.finished:
        update = state.pace.next()
        batch = _next_batch(state, update, batches)
        notes = {"length": float(update.length)} if update.length != state.recipe.batching.length else {}
        if state.eager is not None and batch.shape_at_once(update.micro) not in compiled:
            update, notes["compile_time_s"] = compile_for(state, batch, update)
            state.pace.away(notes["compile_time_s"])
            notes |= {"not_compiled": 1.0} if state.not_compiled else {}
            compiled.add(batch.shape_at_once(update.micro))
        share = state.share(state.pace.done_after(update))
        numbers = _update(state, batch, update, share)
        state.step += 1
        notes["lr"] = share * state.recipe.optimizer.lr
        if state.step % REPORT_EVERY == 0 or state.pace.finished:
            notes.update(state.model.report())
        state.unread.append(Dispatched(state.step, numbers, notes, update.portions * state.pace.tokens_a_portion))
        while len(state.unread) > lag:
            yield from _hand_out(state)
    while state.unread:
        yield from _hand_out(state)


def _update(state: TrainState, batch: Batch, update: Update, share: float) -> Tensor:
    """One optimizer step on one batch. Returns (2,): cross-entropy and gradient norm.

    Where memory runs out and the pace may choose, the step starts over in smaller parts: the batch stays the same.
    """
    micro, generators = update.micro, chance.states(state.device)
    while True:
        try:
            cross_entropy, small_norm = _accumulate(state, batch, micro)
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not memory.may_have_run_out(error):
                raise
            micro = state.pace.back_off(micro or len(batch.inputs_BL), error)
        # Only here, where the error is forgotten: its frames held what had been computed.
        state.forget_step(generators)
        memory.economise()
    norm = state.optimizer.step(share)
    state.model.settle(state.team.total)
    state.pace.took(update, small_norm, norm)
    return torch.stack([state.team.mean(cross_entropy), norm])


def _accumulate(state: TrainState, batch: Batch, micro: int | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of the batch's mean loss, part by part; its cross-entropy, and the norm of the first part's gradient.

    An auxiliary loss (a router's balance) is computed within each part, as it would be on a device of its own.
    """
    passes = len(batch.inputs_BL) // (micro or len(batch.inputs_BL))
    total, small_norm = torch.zeros((), device=state.device), None
    for number, part in enumerate(batch.parts(micro)):
        with state.team.exchanging(number == passes - 1):
            with state.compute.forward():
                losses = state.losses(part)
            loss = losses.cross_entropy + losses.auxiliary
            (loss / passes if part.weight is None else loss * part.weight).backward()
        total += losses.cross_entropy.detach() * (1.0 if part.weight is None else part.weight * passes)
        if number == 0 and state.pace.watches_noise:
            gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
            small_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * passes
    return total / passes, small_norm


def _hand_out(state: TrainState) -> Iterator[Step]:
    """Yield the oldest unread step; what the caller does with it is none of the training's time."""
    step = _read(state)
    left = time.monotonic()
    yield step
    state.pace.away(time.monotonic() - left)


def _read(state: TrainState) -> Step:
    """The oldest unread step as plain numbers. Waits for the device; says so when training diverged."""
    done = state.unread.popleft()
    loss, norm = done.numbers.tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(done.step, loss, norm)
    return Step(index=done.step, tokens=done.tokens, loss=loss, notes={**done.notes, "grad_norm": norm})


def _next_batch(state: TrainState, update: Update, portions: Iterator[Tensor]) -> Batch:
    """The step's portions, one below the other, cut to its length."""
    batching = state.recipe.batching
    taken = []
    for _ in range(update.portions):
        portion = next(portions, None)
        if portion is None:
            raise ValueError(f"batches ran out at step {state.step} of {state.total_steps}")
        wanted = (batching.portion, batching.length + 1)
        if tuple(portion.shape[-2:]) != wanted:
            raise ValueError(
                f"step {state.step}: a portion of shape {tuple(portion.shape)}, expected {wanted} (P, L+1)"
            )
        taken.append(portion)
    whole = torch.cat(taken, dim=-2) if len(taken) > 1 else taken[0]
    cut = whole.unfold(-1, update.length + 1, update.length).flatten(-3, -2).to(state.device, non_blocking=True)
    return Batch.of(state.team.part(cut) if cut.ndim == 2 else cut)
