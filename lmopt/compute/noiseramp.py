"""A batch that grows with the noise of the gradient (McCandlish et al., arXiv 1812.06162)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmopt.compute.decisions import Decision
from lmopt.compute.pace import Replayed, Scheduled, Update
from lmopt.recipe import NoiseRamp, Recipe

UNREAD = 1000
"""Steps whose gradient norms may wait on the device: a bound of what they take where decisions are far apart."""


class GrowingWithNoise(Scheduled):
    """Twice the batch whenever the gradient's noise scale exceeds it.

    The device is asked for norms only when a decision is due or the state is wanted, for those of all steps since.
    """

    watches_noise = True

    def __init__(self, recipe: Recipe, horizon: float, config: NoiseRamp) -> None:
        super().__init__(recipe, horizon)
        self.config = config
        self.size = 1
        """Portions a step."""
        self.signal: float | None = None
        self.noise: float | None = None
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        """Sequences of a step, and the norms of its first micro-batch's gradient and of its own: not yet blended."""
        self.decisions = [Decision(0, 1, config.micro_sequences, "the smallest batch first")]

    @property
    def most_steps(self) -> int:
        return self.step + -(-(self.total_portions - self.portions) // self.size)

    @property
    def may_grow(self) -> bool:
        return self.size < self.config.sequences // self.batching.portion

    def next(self) -> Update:
        left = self.total_portions - self.portions
        return Update(min(self.size, left), self.batching.length, self.config.micro_sequences)

    def took(self, update: Update, small_norm: Tensor | None = None, norm: Tensor | None = None) -> None:
        assert small_norm is not None
        assert norm is not None
        sequences = update.portions * self.batching.portion
        self._unread.append((sequences, small_norm, norm))
        super().took(update)
        is_due = self.step % self.config.every == 0 and self.may_grow
        if is_due or len(self._unread) >= UNREAD:
            self._read()
        if not is_due:
            return
        assert self.signal is not None
        assert self.noise is not None
        scale = self.noise / self.signal if self.signal > 0 else float("inf")
        if self.noise > 0 and scale > sequences:
            self.size *= 2
            facts = {"signal": self.signal, "noise": self.noise, "batch_sequences": float(sequences)}
            why = "the gradient's noise scale exceeds the batch"
            self.decisions.append(Decision(self.step, self.size, self.config.micro_sequences, why, facts))

    def _read(self) -> None:
        """Blend in the norms that wait, in the order of their steps. Waits for the device, once."""
        norms = [norm for _, *pair in self._unread for norm in pair]
        numbers: list[float] = torch.stack(norms).tolist() if norms else []
        for (sequences, _, _), small_norm, norm in zip(self._unread, numbers[::2], numbers[1::2], strict=True):
            signal, noise = noise_scale(self.config.micro_sequences, small_norm, sequences, norm)
            self.signal = _blend(self.signal, signal, self.config.smoothing)
            self.noise = _blend(self.noise, noise, self.config.smoothing)
        self._unread.clear()

    def state(self) -> dict[str, Any]:
        self._read()
        return super().state() | {"size": self.size, "signal": self.signal, "noise": self.noise}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.size, self.signal, self.noise = state["size"], state["signal"], state["noise"]
        self._unread.clear()


def noise_scale(small: int, small_norm: float, big: int, big_norm: float) -> tuple[float, float]:
    """(|G|^2, tr S) without bias from gradient norms at two batch sizes (1812.06162, equations A.2 and A.3).

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b), tr S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B). Either may come out negative.
    """
    signal = (big * big_norm**2 - small * small_norm**2) / (big - small)
    noise = (small_norm**2 - big_norm**2) / (1 / small - 1 / big)
    return signal, noise


def _blend(past: float | None, now: float, smoothing: float) -> float:
    return now if past is None else smoothing * past + (1 - smoothing) * now


def noise_ramp(config: NoiseRamp, recipe: Recipe, horizon: float) -> Scheduled:
    """By the gradient's noise, or as an earlier run decided."""
    return Replayed(recipe, horizon, config) if config.replay else GrowingWithNoise(recipe, horizon, config)
