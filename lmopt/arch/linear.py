"""A linear layer whose weight gradient reads both of its operands along their rows (letters: N tokens, F out, D in)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lmopt.arch import matmul
from lmopt.arch.numbers import TILES, compute_dtype
from lmopt.arch.panels_fused import Panels

WIDE = 320
"""Narrower layers are torch's. Measured on one core with AMX, 2,048 tokens (`python benchmarks/linear.py`): forward and
backward pass 0.9 to 1.0 times as fast at 192 and 256 inputs, 1.0 to 1.1 at 320, 1.1 at 512."""


class Linear(nn.Linear):
    """y = x W^T without bias; trains faster than `nn.Linear` in bfloat16 on a CPU with AMX, and in float32 on one whose
    products in float32 are slow in torch (`lmopt.arch.matmul`). It is the same elsewhere.

    The gradient of W contracts over tokens, so one operand of that product lies the wrong way round. oneDNN lays it
    out anew as it goes, and slowly. Where layers are wide, copying the narrower operand first costs less: both then lie
    as the product wants them.

    Args:
        copies: False for a layer that must not: where activations are computed again in backward, that ends before a
            block's last product, and in the function that copies the product comes first.
    """

    def __init__(self, inputs: int, outputs: int, *, copies: bool = True) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.copies = copies
        self.panels: Panels | None = None
        """The matrix laid out for products without gradients, with the activation behind it (lmopt.arch.laidout)."""

    def activated(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """What the activation that follows this layer makes of its result."""
        return self._read(x, self.panels) if self.panels is not None and _reads(x) else activation(self(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.panels is not None and self.panels.activation is None and _reads(x):
            return self._read(x, self.panels)
        trains = TILES and torch.is_grad_enabled() and self.weight.requires_grad and x.device.type == "cpu"
        # as many outputs as inputs: no operand is the narrower one, and the copy takes what it saves
        pays = min(self.in_features, self.out_features) >= WIDE and self.in_features != self.out_features
        if not self.copies or not trains or not pays or compute_dtype(x) != torch.bfloat16:
            return matmul.linear(x, self.weight)
        y_NF = _NarrowCopied.apply(x.flatten(0, -2).to(torch.bfloat16), self.weight)
        return y_NF.unflatten(0, x.shape[:-1])

    def _read(self, x: Tensor, panels: Panels) -> Tensor:
        return panels.multiply(x.reshape(-1, self.in_features).contiguous()).view(*x.shape[:-1], panels.outputs)


def _reads(x: Tensor) -> bool:
    """Whether the kernel is made for such a tensor; a compiler would not see through it."""
    if torch.compiler.is_compiling():
        return False
    return type(x) is Tensor and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()


class _NarrowCopied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        cast_FD = weight_FD.to(x_ND.dtype)
        ctx.save_for_backward(x_ND, cast_FD)
        ctx.weight_dtype = weight_FD.dtype
        return torch.mm(x_ND, cast_FD.T)

    @staticmethod
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor | None, Tensor]:
        x_ND, cast_FD = ctx.saved_tensors
        grad_x_ND = torch.mm(grad_NF, cast_FD) if ctx.needs_input_grad[0] else None
        if grad_NF.shape[1] < x_ND.shape[1]:
            return grad_x_ND, torch.mm(grad_NF.T.contiguous(), x_ND).to(ctx.weight_dtype)
        grad_weight_DF = torch.mm(x_ND.T.contiguous(), grad_NF)
        return grad_x_ND, grad_weight_DF.T.contiguous().to(ctx.weight_dtype)  # one copy of both kinds is slower
