"""Batches of whole documents, packed into sequences by best fit (Ding et al., arXiv 2404.10830).

Letters: B sequences, L tokens a sequence, P planes, N tokens of the corpus. A portion is int64 [2, B, L + 1]: token
numbers, and each token's document within its row (1, 2, ...; 0 for padding). A document longer than a row is cut into
rows that overlap by one token, as plain windows are; what remains of it is packed like a document of its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmopt.data.shards import Shards
from lmopt.data.storage import DataError
from lmopt.recipe import Packed

ORDER_STREAM, ROWS_STREAM = 2, 3
"""Streams of the seed, apart from those of lmopt.data.batches."""
Piece = tuple[int, int]
"""First token in the corpus, number of tokens."""


def build(config: Packed, shards: Shards, *, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless portions from number `start` on. The same seed and number give the same portion.

    Each epoch takes every document once, in an order drawn from the seed and the epoch; a portion may straddle two.

    Raises:
        DataError: the corpus says no end-of-text token, or holds no document of two tokens.
    """
    end = shards.manifest.get("end_of_text")
    if end is None:
        raise DataError(
            "batching packed: the shards do not say which token ends a document\nhint: build them again, or use fixed"
        )
    starts, sizes = documents(shards.tokens, int(end))
    if not len(sizes):
        raise DataError("batching packed: no document of two tokens or more in the corpus")
    rows = islice(_rows(config, starts, sizes, seed), start * config.portion, None)
    return _portions(config, shards.tokens[None], rows)


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, as tokens."""

    tokens: Sequence[int]
    answer: int
    """How many of them, the last ones, are the answer."""


def answers(config: Packed, examples: Sequence[Example], *, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless portions of examples from number `start` on, of which the answers alone are learnt.

    Int64 [3, B, L + 1]: the two planes of documents, and 1 at the tokens of an answer. Order and epochs as in `build`.

    Raises:
        DataError: no example, or one that is longer than a row or has nothing before its answer.
    """
    if not examples:
        raise DataError("no example to learn from")
    sizes = np.array([len(example.tokens) for example in examples])
    answer = np.array([example.answer for example in examples])
    wrong = np.flatnonzero((sizes > config.length + 1) | (answer >= sizes) | (answer < 1))
    if len(wrong):
        raise DataError(
            f"example {wrong[0]}: {sizes[wrong[0]]} tokens, {answer[wrong[0]]} of them the answer, for rows of "
            f"{config.length + 1}\nhint: cut it off the front, keeping a token before the answer"
        )
    ends = np.cumsum(sizes)
    tokens = np.concatenate([np.asarray(example.tokens, np.uint32) for example in examples])
    learnt = np.arange(len(tokens)) >= np.repeat(ends - answer, sizes)
    rows = islice(_rows(config, ends - sizes, sizes, seed), start * config.portion, None)
    return _portions(config, np.stack([tokens, learnt.astype(np.uint32)]), rows)


def documents(tokens: NDArray[np.unsignedinteger], end_of_text: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token and number of tokens of each document of at least two, its end-of-text token included."""
    last = np.flatnonzero(tokens == end_of_text)
    if not len(last) or last[-1] != len(tokens) - 1:
        last = np.append(last, len(tokens) - 1)
    starts = np.concatenate([[0], last[:-1] + 1])
    sizes = last - starts + 1
    return starts[sizes > 1], sizes[sizes > 1]


def _rows(config: Packed, starts: NDArray[np.int64], sizes: NDArray[np.int64], seed: int) -> Iterator[list[Piece]]:
    """What each row holds, epoch after epoch."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch, ORDER_STREAM]).permutation(len(starts))
        for group in range(0, len(order), config.group):
            chosen = order[group : group + config.group]
            rows = pack([(int(starts[i]), int(sizes[i])) for i in chosen], config.length + 1)
            shuffled = np.random.default_rng([seed, epoch, ROWS_STREAM, group]).permutation(len(rows))
            yield from (rows[i] for i in shuffled)
        epoch += 1


def pack(pieces: list[Piece], capacity: int) -> list[list[Piece]]:
    """Rows of at most `capacity` tokens: long pieces cut first, the rest by best-fit decreasing."""
    rows: list[list[Piece]] = []
    rest: list[Piece] = []
    for start, size in pieces:
        while size > capacity:
            rows.append([(start, capacity)])
            start, size = start + capacity - 1, size - capacity + 1
        if size > 1:
            rest.append((start, size))
    rest.sort(key=lambda piece: (-piece[1], piece[0]))
    room: list[tuple[int, int]] = []
    """(tokens left, number of the row), ascending: the first with enough room has the least."""
    for start, size in rest:
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            rows.append([(start, size)])
            left, row = capacity - size, len(rows) - 1
        else:
            left, row = room.pop(place)
            rows[row].append((start, size))
            left -= size
        if left > 1:
            bisect.insort(room, (left, row))
    return rows


def _portions(config: Packed, planes_PN: NDArray[np.unsignedinteger], rows: Iterator[list[Piece]]) -> Iterator[Tensor]:
    """Tokens, documents, and whatever else is known of each token."""
    while True:
        portion = np.zeros((1 + len(planes_PN), config.portion, config.length + 1), np.int64)
        for b, row in enumerate(islice(rows, config.portion)):
            column = 0
            for number, (start, size) in enumerate(row, start=1):
                place = slice(column, column + size)
                portion[0, b, place] = planes_PN[0, start : start + size]
                portion[1, b, place] = number
                portion[2:, b, place] = planes_PN[1:, start : start + size]
                column += size
        yield torch.from_numpy(portion)
