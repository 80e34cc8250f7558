"""What each step of a training holds: decided before it, while it runs, or read from an earlier run's decisions.

A pace says how many portions the next step takes, how long its sequences are and how many go through at once, and is
told what came of it. Every change is a `Decision`; a run's decisions, written one JSON object a line, replay it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lmopt import cost_memory
from lmopt.compute import memory
from lmopt.compute.decisions import Decision, fitting_decisions
from lmopt.recipe import AdaptiveMicro, FixedBatch, NoiseRamp, Recipe


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step holds."""

    portions: int
    length: int
    """Tokens a sequence."""
    micro: int | None
    """Sequences a forward pass; None takes all at once."""


class Scheduled:
    """The pace of a list of phases. Also what the paces below build on: counting, and the log of decisions."""

    watches_noise = False
    """Whether it wants the gradient norm of the first micro-batch."""

    def __init__(self, recipe: Recipe, horizon: float) -> None:
        batching: FixedBatch = recipe.batching
        self.batching = batching
        self.phases = recipe.phases(horizon)
        self.total_steps = sum(phase.steps for phase in self.phases)
        """Steps of the training; where batches grow, the most that there can be."""
        self.total_portions = sum(phase.steps * phase.portions for phase in self.phases)
        self.step = 0
        self.portions = 0
        """Portions taken so far."""
        self.decisions: list[Decision] = []

    @property
    def finished(self) -> bool:
        """Whether all portions of the training were taken."""
        return self.portions >= self.total_portions

    @property
    def most_steps(self) -> int:
        """Steps of the training as far as it is known by now: fewer than `total_steps` once batches have grown."""
        return self.total_steps

    @property
    def may_grow(self) -> bool:
        """Whether batches may still grow, so that there may be fewer steps than `most_steps`."""
        return False

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole training."""
        return self.total_portions * self.tokens_a_portion

    @property
    def tokens_a_portion(self) -> int:
        """Tokens of one portion; where sequences begin short it is the same text, cut into more of them."""
        return self.batching.portion * self.batching.length

    def tokens_by_length(self, tokens: int) -> dict[int, int]:
        """The first `tokens` of the training by the length of their sequences."""
        found: dict[int, int] = {}
        for phase in self.phases:
            taken = min(tokens, phase.steps * phase.portions * self.tokens_a_portion)
            if taken:
                found[phase.length] = found.get(phase.length, 0) + taken
            tokens -= taken
        return found

    def done_after(self, update: Update) -> float:
        """Training done after an update, in full steps: what the learning rate's schedule runs over."""
        return (self.portions + update.portions) * self.tokens_a_portion / self.batching.tokens

    def next(self) -> Update:
        """What the coming step holds."""
        step = self.step
        for phase in self.phases:
            if step < phase.steps:
                break
            step -= phase.steps
        return Update(phase.portions, phase.length, self.batching.micro_sequences)

    def away(self, seconds: float) -> None:
        """So much time went by in something else than steps: in what the caller does between two, in a compiler."""

    def back_off(self, micro: int, error: BaseException) -> int:
        """Fewer sequences a forward pass, after memory ran out; a pace that may not choose lets the error pass."""
        del micro
        raise error

    def took(self, update: Update, small_norm: Tensor | None = None, norm: Tensor | None = None) -> None:
        """The update was handed to the device; gradient norms where `watches_noise`."""
        del small_norm, norm
        self.step += 1
        self.portions += update.portions

    def state(self) -> dict[str, Any]:
        """All it needs to go on, as plain data."""
        return {"step": self.step, "portions": self.portions, "decisions": [asdict(one) for one in self.decisions]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step, self.portions = state["step"], state["portions"]
        self.decisions = [Decision(**one) for one in state["decisions"]]
        if any(one.why == RAN_OUT for one in self.decisions):
            memory.economise()  # as it was before: other kernels would give other bits


class Replayed(Scheduled):
    """The pace that an earlier run's decisions give: the same steps, so the same bits."""

    def __init__(self, recipe: Recipe, horizon: float, batching: NoiseRamp | AdaptiveMicro) -> None:
        super().__init__(recipe, horizon)
        self._by_step = {one.step: one for one in fitting_decisions(batching)}
        self.total_steps = self._steps()

    def _steps(self) -> int:
        """Steps that the decisions make of the training."""
        steps = sorted(self._by_step)
        left = self.total_portions
        for step, following in itertools.pairwise(steps):
            taken = (following - step) * self._by_step[step].portions
            if taken >= left:
                return step + -(-left // self._by_step[step].portions)
            left -= taken
        return steps[-1] + -(-left // self._by_step[steps[-1]].portions)

    def next(self) -> Update:
        latest = self._by_step[max(step for step in self._by_step if step <= self.step)]
        if self.step in self._by_step and (not self.decisions or self.decisions[-1].step != self.step):
            self.decisions.append(latest)
            if latest.why == RAN_OUT:
                memory.economise()  # from here on that run had kernels that take less
        portions = min(latest.portions, self.total_portions - self.portions)
        return Update(portions, self.batching.length, latest.micro)


RAN_OUT = "memory ran out"
"""Why a size is smaller, and by which kernels it is computed from then on."""
FASTER = 1.03
"""Another size must be this much faster to be kept: less is the clock's and the neighbours' noise."""
MORE_FREE = 0.25
"""Memory that ran out at a size is clearly more when a quarter more is free, and at least what the size takes."""
PATIENCE = 8
"""Judgements between two trials of other sizes, so that at most an eighth of the steps run at a size on trial."""


class Adapting(Scheduled):
    """The largest micro-batch that memory allows, or a smaller one that is faster; watched at every step."""

    def __init__(
        self,
        recipe: Recipe,
        horizon: float,
        config: AdaptiveMicro,
        *,
        free_bytes: Callable[[], int | None] = memory.available_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(recipe, horizon)
        self.config, self._free_bytes, self._clock = config, free_bytes, clock
        self._needs_bytes = cost_memory.bytes_by_micro(recipe, config.sizes)
        """Size -> what the training takes in all."""
        self._held_bytes = self._needs_bytes[1] - cost_memory.memory_parts(recipe)[1]
        """What it takes beside its activations."""
        self._used_bytes = 0
        """Bytes of activations that are taken to be held already: a smaller size gives back nothing by itself."""
        self._failed: int | None = None
        """A size at which memory ran out; it and larger ones wait until more is free."""
        self._free_when_failed: float | None = None
        """Bytes free beside the step's own at the first step after that."""
        self._speeds: dict[int, float] = {}
        """Size -> tokens a second, when last judged."""
        self._best: int | None = None
        """The size in use when no other is on trial."""
        self._judgements = self._trials = 0
        self._squeezed_from: list[int] = []
        """Sizes in use whenever memory became short, descending: the way back, the last one first."""
        self._since: tuple[float, int] | None = None
        """Clock and step at which this size began to be timed; the clock is put forward by all that was not steps."""
        self._first_step = 0
        """First step at the present size. It is not timed: its memory is new."""
        self.micro = 0
        lacking = cost_memory.want_of_own(recipe)
        if lacking is not None:
            raise ValueError(lacking)
        memory.give_back()  # what an earlier training of this process left, as a warm-up does, is free for this one
        self._settle(self.allowed(), "the largest that memory allows")

    def allowed(self) -> int:
        """The largest size that fits memory now; one sequence is always tried."""
        free = self._free_beside()
        self._forget_failure(free)
        room = float("inf") if free is None else self.config.memory_share * free
        own = self.config.memory or float("inf")
        fitting = [
            size
            for size, needed in self._needs_bytes.items()
            if needed <= own and needed - self._held_bytes <= room and size < (self._failed or float("inf"))
        ]
        return fitting[-1] if fitting else 1

    def _free_beside(self) -> float | None:
        """Bytes that are free for a step's activations, those that it holds already among them."""
        free = self._free_bytes()
        coming = 0 if self.step else self._held_bytes  # gradients and moments come with the first step
        return None if free is None else free + self._used_bytes - coming

    def _forget_failure(self, free: float | None) -> None:
        """Allow the size at which memory ran out again, once clearly more is free than was after it."""
        if self._failed is None or free is None:
            return
        if self._free_when_failed is None:
            self._free_when_failed = free
        needed = self._needs_bytes[self._failed] - self._held_bytes
        if free >= self._free_when_failed + max(needed, MORE_FREE * abs(self._free_when_failed)):
            self._failed = self._free_when_failed = None

    def next(self) -> Update:
        allowed = self.allowed()
        if self.micro > allowed:
            self._squeezed_from.append(self.micro)
            memory.give_back()
            self._used_bytes = 0
            self._settle(allowed, "less memory is free")
        elif self._squeezed_from and allowed >= self._squeezed_from[-1]:
            self._settle(max(size for size in self._squeezed_from if size <= allowed), "memory is free again")
            self._squeezed_from = [size for size in self._squeezed_from if size > allowed]
        elif self._since is not None and self.step - self._since[1] >= self.config.every:
            self._judge(allowed)
        if self._since is None and self.step > self._first_step:
            self._since = self._clock(), self.step
        phase = self.phases[0]
        return Update(phase.portions, phase.length, self.micro)

    def away(self, seconds: float) -> None:
        if self._since is not None:
            self._since = self._since[0] + seconds, self._since[1]

    def back_off(self, micro: int, error: BaseException) -> int:
        self._failed, self._free_when_failed, self._used_bytes = micro, None, 0
        self._squeezed_from.append(micro)
        smaller = [size for size in self.config.sizes if size < micro]
        if not smaller:
            if not memory.ran_out(error):  # not for want of memory, as it seems
                raise error
            raise MemoryError(
                f"memory ran out with a single sequence of {self.config.length} tokens: {error}\n"
                "hint: a smaller model, or a shorter batching.length"
            ) from error
        self._settle(smaller[-1], RAN_OUT)
        return self.micro

    def took(self, update: Update, small_norm: Tensor | None = None, norm: Tensor | None = None) -> None:
        super().took(update, small_norm, norm)
        if memory.keeps_freed():
            self._used_bytes = max(self._used_bytes, self._needs_bytes[self.micro] - self._held_bytes)

    def _judge(self, allowed: int) -> None:
        """Note the present size's speed; stay, return to the best, or try a neighbour."""
        assert self._since is not None
        seconds, steps = self._clock() - self._since[0], self.step - self._since[1]
        self._speeds[self.micro] = steps * self.batching.tokens / max(seconds, 1e-9)
        best = self.micro if self._best is None else self._best
        if best not in self._speeds or best > allowed:
            best = self.micro
        if self.micro != best:  # a trial ends here
            faster = self._speeds[self.micro] > FASTER * self._speeds[best]
            self._settle(self.micro if faster else best, "faster on trial" if faster else "no faster on trial")
            return
        self._best, self._since = best, None
        self._judgements += 1
        trials = [size for size in self._neighbours(best) if size <= allowed]
        if trials and (self._judgements <= len(trials) or self._judgements % PATIENCE == 0):
            self._trials += 1
            self._change(trials[self._trials % len(trials)], "on trial")

    def _neighbours(self, size: int) -> list[int]:
        place = self.config.sizes.index(size)
        return [*self.config.sizes[max(0, place - 1) : place], *self.config.sizes[place + 1 : place + 2]]

    def _settle(self, size: int, why: str) -> None:
        self._best = size
        self._change(size, why)

    def _change(self, size: int, why: str) -> None:
        self._since = None
        if size == self.micro:
            return
        self._first_step = self.step
        facts = {f"tokens_per_s/{known}": speed for known, speed in self._speeds.items()}
        free = self._free_bytes()
        if free is not None:
            facts["free_bytes"] = float(free)
        self.micro = size
        latest = Decision(self.step, self.phases[0].portions, size, why, facts)
        if self.decisions and self.decisions[-1].step == self.step:
            self.decisions.pop()
        self.decisions.append(latest)

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "micro": self.micro,
            "failed": self._failed,
            "free_when_failed": self._free_when_failed,
            "squeezed_from": [*self._squeezed_from],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.micro, self._failed, self._since = state["micro"], state["failed"], None
        self._free_when_failed, self._squeezed_from = state["free_when_failed"], [*state["squeezed_from"]]
        self._best, self._first_step = self.micro, self.step


# --- builders ------------------------------------------------------------------------------------


def scheduled(_config: FixedBatch, recipe: Recipe, horizon: float) -> Scheduled:
    """Known before the training."""
    return Scheduled(recipe, horizon)


def adaptive(config: AdaptiveMicro, recipe: Recipe, horizon: float) -> Scheduled:
    """By memory and speed, or as an earlier run decided.

    Raises:
        ValueError: the memory limit is below one sequence.
        ReplayError: the file of decisions cannot be read or does not fit.
    """
    return Replayed(recipe, horizon, config) if config.replay else Adapting(recipe, horizon, config)
