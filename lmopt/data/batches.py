"""Training batches: which tokens a step sees, as a pure function of the seed and the step.

Letters: B sequences, L tokens a sequence. A batch has L + 1 columns: inputs are [:, :-1], targets [:, 1:]. What is
drawn at once is a portion: the whole batch of `fixed`, a part of it where batches or sequences grow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmopt.data.order import WindowOrder, drawn
from lmopt.data.shards import Shards
from lmopt.data.storage import DataError
from lmopt.recipe import FixedBatch

OFFSET_STREAM = 1


def build(
    config: FixedBatch, shards: Shards, *, seed: int, start: int = 0, order: WindowOrder = drawn
) -> Iterator[Tensor]:
    """Endless portions from number `start` on (0 is the first), int64 [B, L + 1] with B the windows of a portion.

    The tokens are cut into windows of L + 1 that overlap by one. Each epoch visits every window once, in an order
    (lmopt.data.order) and from a first token (0 to L - 1) drawn from the seed and the epoch; a portion may straddle two
    epochs. The same seed and number give the same portion, whatever was drawn before.

    Raises:
        DataError: the corpus has fewer windows than one batch.
    """
    windows = windows_per_epoch(len(shards.tokens), config.length)
    if windows < config.sequences:
        needed = config.sequences * config.length + config.length
        raise DataError(
            f"the corpus has {len(shards.tokens)} tokens, and one batch of {config.sequences} sequences of "
            f"{config.length} needs {needed}\nhint: a larger corpus, or fewer or shorter sequences"
        )
    return _portions(config, shards.tokens, windows, seed, start, order)


def windows_per_epoch(tokens: int, length: int) -> int:
    """Whole windows of length + 1 that a corpus holds, from whichever first token below `length`."""
    return max((tokens - length) // length, 0)


def _portions(
    config: FixedBatch,
    tokens: NDArray[np.unsignedinteger],
    windows: int,
    seed: int,
    number: int,
    order: WindowOrder,
) -> Iterator[Tensor]:
    column_L = np.arange(config.length + 1)

    @functools.lru_cache(maxsize=2)
    def epoch_of(epoch: int) -> tuple[NDArray[np.int64], int]:
        """(order of the windows, first token) of an epoch."""
        first = int(np.random.default_rng([seed, epoch, OFFSET_STREAM]).integers(config.length))
        return order(seed, epoch, windows, first), first

    while True:
        start_B = np.empty(config.portion, np.int64)
        for row, place in enumerate(range(number * config.portion, (number + 1) * config.portion)):
            epoch, place_in_epoch = divmod(place, windows)
            order_W, first = epoch_of(epoch)
            start_B[row] = order_W[place_in_epoch] * config.length + first
        yield torch.from_numpy(tokens[start_B[:, None] + column_L].astype(np.int64))
        number += 1
