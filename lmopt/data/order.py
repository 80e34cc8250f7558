"""The order in which a training goes through its windows: a permutation for every epoch.

Letters: W windows of an epoch, P places of an order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lmopt.data.shards import Shards
from lmopt.data.storage import DataError
from lmopt.techniques.order import Curriculum, Shuffled

ORDER_STREAM, CURRICULUM_STREAM = 0, 2

WindowOrder = Callable[[int, int, int, int], NDArray[np.int64]]
"""(seed, epoch, windows of an epoch, first token of the first window) -> which window stands at each place."""


def shuffled(config: Shuffled, shards: Shards, *, length: int, run_windows: int) -> WindowOrder:  # noqa: ARG001
    """Every epoch in an order of its own."""
    return drawn


def drawn(seed: int, epoch: int, windows: int, first: int) -> NDArray[np.int64]:  # noqa: ARG001 - wherever they begin
    """A permutation drawn from the seed and the epoch."""
    return np.random.default_rng([seed, epoch, ORDER_STREAM]).permutation(windows)


def curriculum(config: Curriculum, shards: Shards, *, length: int, run_windows: int) -> WindowOrder:
    """Easy windows first in the first epoch, for a share of the run; later epochs are shuffled.

    Args:
        length: tokens a window.
        run_windows: windows that the whole training takes, of whichever epochs.

    Raises:
        DataError: the shards hold no difficulty.
    """
    if shards.difficulty is None:
        raise DataError(
            "order curriculum: these shards hold no difficulty of their documents\n"
            "hint: put {kind: difficulty} behind the arm's other data steps"
        )

    def order(seed: int, epoch: int, windows: int, first: int) -> NDArray[np.int64]:
        if epoch:
            return drawn(seed, epoch, windows, first)
        hardness_W = window_difficulty(shards, first + length * np.arange(windows), length)
        if config.hardest_first:
            hardness_W = -hardness_W
        return paced(config, np.argsort(hardness_W, kind="stable"), round(config.warmup * run_windows), seed)

    return order


def paced(config: Curriculum, ranked_W: NDArray[np.int64], warmup: int, seed: int) -> NDArray[np.int64]:
    """An order in which place p, while the warm-up of so many places lasts, holds one of the easiest allowed at p.

    Among those it is drawn evenly from the ones not used yet; every window stands once in the order.

    Args:
        ranked_W: windows from easy to hard.
    """
    rng = np.random.default_rng([seed, CURRICULUM_STREAM])
    windows = len(ranked_W)
    warmup = min(warmup, windows)
    pool: list[int] = []
    order: list[int] = []
    ranked, added = ranked_W.tolist(), 0
    for place, chance in enumerate(rng.random(warmup)):
        count = min(windows, max(math.ceil(allowed(config, place / warmup) * windows), place + 1))
        pool += ranked[added:count]
        added = max(added, count)
        chosen = int(chance * len(pool))
        pool[chosen], pool[-1] = pool[-1], pool[chosen]
        order.append(pool.pop())
    rest = rng.permutation(np.array(pool + ranked[added:], np.int64))
    return np.concatenate([np.array(order, np.int64), rest])


def allowed(config: Curriculum, x: float) -> float:
    """Share of the windows, from the easiest on, that is allowed when a share x of the warm-up is over."""
    s = config.start
    if config.pacing == "root":
        return math.sqrt(s * s + (1 - s * s) * x)
    if config.pacing == "step":
        x = math.floor(x * config.stages) / config.stages
    return s + (1 - s) * x


def window_difficulty(shards: Shards, start_W: NDArray[np.int64], length: int) -> NDArray[np.float64]:
    """Mean difficulty of a window's tokens, each as hard as its document. Memory grows with documents, not tokens."""
    assert shards.difficulty is not None
    ends_D, sums_D = _documents(shards)
    before_W, after_W = (
        _sum_until(place_W, ends_D, sums_D, shards.difficulty) for place_W in (start_W, start_W + length)
    )
    return (after_W - before_W) / length


def _sum_until(
    place_W: NDArray[np.int64], ends_D: NDArray[np.int64], sums_D: NDArray[np.float64], hard_D: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Sum of the difficulty of all tokens before a place."""
    document_W = np.minimum(np.searchsorted(ends_D, place_W, side="right"), len(ends_D) - 1)
    left_W = ends_D[document_W] - place_W
    return sums_D[document_W] - left_W * hard_D[document_W].astype(np.float64)


@functools.lru_cache(maxsize=2)
def _documents(shards: Shards) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(one past each document's last token, sum of the difficulty of all tokens up to there)."""
    assert shards.difficulty is not None
    ends_D = np.flatnonzero(shards.tokens == shards.manifest["end_of_text"]) + 1
    if len(ends_D) != len(shards.difficulty):
        raise DataError(
            f"{len(ends_D)} documents in the tokens, {len(shards.difficulty)} difficulties\nhint: build again"
        )
    return ends_D, np.cumsum(np.diff(ends_D, prepend=0) * shards.difficulty.astype(np.float64))
