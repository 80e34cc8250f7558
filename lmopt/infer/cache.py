"""Keys and values of the tokens read so far, in memory laid out once (letters: see lmopt/arch/transformer.py).

Each sequence of a batch begins at position 0 of its row and has its own length, so rows of unequal length need no
padding on the left: what lies beyond a row's length is never looked at and is written over later. Taking tokens back
is therefore setting a smaller length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmopt.recipe import Model


class KvCache:
    """Room for `capacity` tokens of each of `batch` sequences. S is the capacity."""

    def __init__(
        self, model: Model, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        if capacity > model.context:
            raise ValueError(f"a cache of {capacity} tokens exceeds the model's context of {model.context}")
        shape = (model.layers, batch, model.key_heads, capacity, model.head_width)
        # zeros: a masked key weighs nothing, but nothing times the NaN that unwritten memory may hold is NaN
        self.keys_LBKSC = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBKSC = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = [0] * batch
        """Tokens of each row that count."""

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return self.keys_LBKSC.nbytes + self.values_LBKSC.nbytes

    def write(
        self, layer: int, start: Sequence[int], k_BKTC: Tensor, v_BKTC: Tensor, rows: Sequence[int] | None = None
    ) -> None:
        """Put new tokens' keys and values of one layer at positions `start` of each row; lengths stay.

        Args:
            rows: the rows that the B sequences given are; default: all.
        """
        keys_BKSC, values_BKSC = self.keys_LBKSC[layer], self.values_LBKSC[layer]
        count = k_BKTC.shape[2]
        end = max(start) + count
        self.refuse_beyond(end)
        if min(start) + count == end:
            which = slice(None) if rows is None else torch.tensor(list(rows), device=keys_BKSC.device)
            keys_BKSC[which, :, end - count : end] = k_BKTC.to(keys_BKSC.dtype)
            values_BKSC[which, :, end - count : end] = v_BKTC.to(values_BKSC.dtype)
            return
        for given, (row, first) in enumerate(zip(rows or range(len(start)), start, strict=True)):
            keys_BKSC[row, :, first : first + count].copy_(k_BKTC[given])
            values_BKSC[row, :, first : first + count].copy_(v_BKTC[given])

    def seen(self, layer: int, end: int, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer's rows (default: all) up to position `end`, B x K x `end` x C.

        Views where `rows` is None.
        """
        keys_BKSC, values_BKSC = self.keys_LBKSC[layer, :, :, :end], self.values_LBKSC[layer, :, :, :end]
        if rows is None:
            return keys_BKSC, values_BKSC
        index = torch.tensor(list(rows), device=keys_BKSC.device)
        return keys_BKSC.index_select(0, index), values_BKSC.index_select(0, index)

    def refuse_beyond(self, end: int) -> None:
        """Raises ValueError where no row has places up to `end`."""
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self.capacity}")

    def advance(self, counts: Sequence[int]) -> None:
        """Count so many more tokens of each row, already written."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget all tokens of each row from position `lengths` on.

        Raises:
            ValueError: a row never was that long.
        """
        for row, (now, then) in enumerate(zip(self.lengths, lengths, strict=True)):
            if not 0 <= then <= now:
                raise ValueError(f"row {row} has {now} tokens, it cannot be rolled back to {then}")
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(list(rows), device=self.keys_LBKSC.device)
        self.keys_LBKSC = self.keys_LBKSC.index_select(1, index)
        self.values_LBKSC = self.values_LBKSC.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]
