"""Dense feed-forwards: gated SiLU and squared ReLU (letters: see transformer.py).

A feed-forward maps B x T x D to the pair (B x T x D, auxiliary loss or None).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lmopt.arch.activation import relu2, swiglu
from lmopt.arch.linear import Linear
from lmopt.recipe import Model, Relu2, SwiGlu


class SwiGluFfn(nn.Module):
    """(silu(x W_gate) * x W_up) W_down; gate and up are one matrix (gate first)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden)
        self.down = Linear(hidden, width, copies=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return self.down(_activated(self.gate_up, x_BTD, swiglu)), None


class Relu2Ffn(nn.Module):
    """relu(x W_up)^2 W_down."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width, copies=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return self.down(_activated(self.up, x_BTD, relu2)), None


def _activated(layer: nn.Module, x_BTD: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """In one go where the layer can; other layers take the place of this one, as those of 8 bits."""
    return layer.activated(x_BTD, activation) if isinstance(layer, Linear) else activation(layer(x_BTD))


def build(config: SwiGlu | Relu2, model: Model) -> nn.Module:
    """The feed-forward of one block."""
    part = SwiGluFfn if isinstance(config, SwiGlu) else Relu2Ffn
    return part(model.width, config.hidden_for(model.width))
