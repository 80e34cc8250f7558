"""What an algorithm that leaves things to chance does in all cases, with their probabilities: a proof by enumeration.

An algorithm that asks `choose(p_V)` for every decision is run once for each way in which these can fall out; the
product of the probabilities along the way is the probability of the result. No sampling, so no sampling error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

from lmopt.infer.sampling import Choose

Result = TypeVar("Result", bound=Hashable)


def outcomes(algorithm: Callable[[Choose], Result]) -> dict[Result, float]:
    """Every possible result of `algorithm` and its exact probability.

    The algorithm must end, and do the same again when the same is chosen.

    Raises:
        ValueError: a probability is no number; all of them would count as possible, and there would be no end.
    """
    parts: dict[Result, list[float]] = {}
    pending: list[list[int]] = [[]]
    while pending:
        path = _Path(pending.pop(), pending)
        parts.setdefault(algorithm(path.choose), []).append(path.probability)
    return {result: math.fsum(found) for result, found in parts.items()}


class _Path:
    """One run: decisions that are given, then the first possible of each; the others are left for later runs."""

    def __init__(self, given: list[int], pending: list[list[int]]) -> None:
        self.given, self.pending = given, pending
        self.taken: list[int] = []
        self.probability = 1.0

    def choose(self, p_V: Tensor) -> int:
        if not p_V.isfinite().all():
            raise ValueError("a probability is no number\nhint: the model's logits are not finite")
        possible = p_V.nonzero()[:, 0].tolist()
        if len(self.taken) < len(self.given):
            index = self.given[len(self.taken)]
        else:
            index = possible[0]
            self.pending.extend([*self.taken, other] for other in possible[1:])
        self.probability *= float(p_V[index])
        self.taken.append(index)
        return index
