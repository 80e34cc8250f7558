"""Whom a training shares its batch with: nobody (here), or the ranks of a process group (lmopt.train.distributed)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor


class Team(Protocol):
    """What the training loop asks. Every rank is handed the same global batch and trains on its own part."""

    def part(self, tokens_BL1: Tensor) -> Tensor:
        """This rank's sequences of a global batch."""
        ...

    def mean(self, numbers: Tensor) -> Tensor:
        """Mean over ranks, on every rank."""
        ...

    def total(self, numbers: Tensor) -> Tensor:
        """Sum over ranks, on every rank."""
        ...

    def exchanging(self, is_last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: gradients are exchanged after the last one of a step only."""
        ...


class Alone:
    """One process."""

    def part(self, tokens_BL1: Tensor) -> Tensor:
        return tokens_BL1

    def mean(self, numbers: Tensor) -> Tensor:
        return numbers

    def total(self, numbers: Tensor) -> Tensor:
        return numbers

    def exchanging(self, is_last: bool) -> AbstractContextManager[object]:  # noqa: ARG002 - nobody to exchange with
        return nullcontext()
