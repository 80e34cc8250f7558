"""All layers of a dense decoder over a few new tokens, on a CPU, in one call of a kernel in C++ (layers_fused.cpp).

Letters: transformer.py; L layers, R rows of a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmopt.arch import fused
from lmopt.arch.panels_fused import BEHIND, Panels


@dataclass(frozen=True, slots=True)
class Matrices:
    """One layer."""

    attention_gains_D: Tensor
    qkv: Panels
    output: Panels
    ffn_gains_D: Tensor
    up: Panels
    down: Panels

    def addresses(self) -> list[int]:
        """Of all that the kernel reads, in its order."""
        parts = self.attention_gains_D, self.qkv, self.output, self.ffn_gains_D, self.up, self.down
        return [
            address for part in parts for address in (_addresses(part) if isinstance(part, Panels) else [_at(part)])
        ]


class Layers:
    """Layers that differ in their weights only.

    Args:
        eps: of their norms.
    """

    def __init__(self, layers: Sequence[Matrices], *, eps: float) -> None:
        self.layers, self.eps = list(layers), eps
        self._table_LA = torch.tensor([layer.addresses() for layer in layers])

    def __reduce__(self) -> tuple[Any, ...]:
        """Addresses are not copied: a copy's tensors have their own."""
        return functools.partial(Layers, eps=self.eps), (self.layers,)

    def extend(
        self, x_BTD: Tensor, cos_SC: Tensor, sin_SC: Tensor, keys_LRKSC: Tensor, values_LRKSC: Tensor,
        start_B: Tensor, rows_B: Tensor, *, first: int, last: int,
    ) -> Tensor:  # fmt: skip
        """Layers `first` to `last` (exclusive) on new tokens behind those of the cache, to the bits of each by itself.

        What it is given is trusted, as by `extension_fused.extend`.
        """
        batch, count, width = x_BTD.shape
        one = self.layers[0]
        _, rows, key_heads, room, head_width = keys_LRKSC.shape
        x_BTD = x_BTD.clone(memory_format=torch.contiguous_format)
        heads, inner = one.output.inputs // head_width, one.down.inputs
        spare = x_BTD.new_empty(batch * count * (one.qkv.outputs + one.output.inputs + inner))
        shape = batch, count, width, heads, key_heads, head_width, inner, rows, room
        how = torch.get_num_threads(), self.eps, BEHIND[one.up.activation]
        cache = keys_LRKSC[first], values_LRKSC[first]
        table = self._table_LA[first]
        fused.run(
            "decode_layers", one.qkv.two_bytes, last - first, *shape, *how, table, cos_SC, sin_SC, *cache, start_B,
            rows_B, x_BTD, spare,
        )  # fmt: skip
        return x_BTD


def _addresses(panels: Panels) -> list[int]:
    return [_at(part) for part in (panels.panels_PWE, panels.scale_F, panels.shift_F)]


def _at(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()
