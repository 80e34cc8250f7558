"""Activations of a feed-forward's inner layer, with backward passes that write each gradient once.

Composed from torch's functions, SwiGLU's two halves are views of one matrix and the gradient of each view is a matrix
of zeros with a half filled in; here both halves are written in place. Half the time of the composed version on a CPU.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch import rows_fused

Kind = Literal["swiglu", "relu2"]


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of a ... x 2F input whose first half is the gate: ... x F (Shazeer, arXiv 2002.05202)."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
    return _activated(gate_up, "swiglu")


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al., arXiv 2109.08668)."""
    if torch.compiler.is_compiling():
        return _squared(functional.relu(x))
    return _activated(x, "relu2")


def _activated(x: Tensor, kind: Kind) -> Tensor:
    parts = 2 if kind == "swiglu" else 1
    whole = x.shape[-1] % parts == 0 and rows_fused.suits(x, x.shape[-1] // parts)
    function = rows_fused.Activation if whole else _Activation
    return function.apply(x, kind)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: Kind) -> Tensor:
        out, kept = activate(kind, x)
        ctx.save_for_backward(kept)
        ctx.kind = kind
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return activate_backward(ctx.kind, grad, *ctx.saved_tensors), None


# --- both passes, for layers that write their own backward ---------------------------------------

NARROW = 512
"""Halves of fewer columns are taken apart into two contiguous matrices first. Torch's loops start anew at every row of
a half: on 8,192 x 2 x 256 numbers in bfloat16 both passes took 9.3 ms, with the copies 4.6."""


def activate(kind: Kind, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activation, and what its backward pass needs."""
    if kind == "relu2":
        rectified = functional.relu(x)
        return _squared(rectified), rectified
    halves = x.unflatten(-1, (2, -1)).movedim(-2, 0)
    if halves.shape[-1] < NARROW and not torch.compiler.is_compiling():
        halves = halves.contiguous()
    gate, up = halves
    return functional.silu(gate).mul_(up), halves


def _squared(x: Tensor) -> Tensor:
    """x^2 in its own format: autocast on CUDA computes `square`, which is a power, in float32."""
    return x * x


def activate_backward(kind: Kind, grad: Tensor, kept: Tensor) -> Tensor:
    """The gradient of the activation's input."""
    if kind == "relu2":
        return torch.mul(grad, kept).mul_(2)
    gate, up = kept
    if torch.compiler.is_compiling():
        return torch.cat([torch.ops.aten.silu_backward(grad * up, gate), grad * functional.silu(gate)], dim=-1)
    grad_halves = torch.empty_like(kept)  # in memory as `kept`: taken apart, or side by side as the input was
    silu = functional.silu(gate)
    _swiglu_backward(grad, gate, up, silu, grad_halves, spare=silu)
    return grad_halves.movedim(0, -2).flatten(-2)


def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor, silu: Tensor, out: Tensor, spare: Tensor) -> None:
    """The gradients of both halves; `spare`, written over, may be `grad` or `silu`."""
    grad_gate, grad_up = out
    torch.mul(grad, silu, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(torch.mul(grad, up, out=spare), gate, grad_input=grad_gate)


# --- both passes into memory that is there already -----------------------------------------------
# R x F rows of one expert; P parts of the inner layer, gate and up, or one matrix. SwiGLU keeps silu(gate) instead of
# its result: of the two, the result is the cheaper one to compute again.


def activate_parts(kind: Kind, inner_PRF: Tensor, kept_RF: Tensor, spare_RF: Tensor) -> Tensor:
    """The activation, R x F, in `kept` or `spare`; `inner` and `kept` are what the backward pass needs."""
    if kind == "relu2":
        (rectified,) = inner_PRF
        return torch.mul(rectified.relu_(), rectified, out=kept_RF)
    gate, up = inner_PRF
    return torch.mul(torch.ops.aten.silu.out(gate, out=kept_RF), up, out=spare_RF)


def activated_parts(kind: Kind, inner_PRF: Tensor, kept_RF: Tensor, spare_RF: Tensor) -> Tensor:
    """The activation once more, from what its forward pass kept."""
    return kept_RF if kind == "relu2" else torch.mul(kept_RF, inner_PRF[1], out=spare_RF)


WHOLE = 64
"""Columns that torch's loops take at a time; the rest goes one by one, as slowly as a copy, and rounds otherwise."""


def parts_backward(kind: Kind, grad_RF: Tensor, inner_PRF: Tensor, kept_RF: Tensor, out_PRF: Tensor) -> None:
    """The gradient of `inner` into `out`, whose parts may stand side by side; `grad` is used up."""
    into_PRF = out_PRF if grad_RF.shape[1] % WHOLE == 0 else torch.empty_like(inner_PRF)
    if kind == "relu2":
        torch.mul(grad_RF, inner_PRF[0], out=into_PRF[0]).mul_(2)
    else:
        _swiglu_backward(grad_RF, *inner_PRF, kept_RF, into_PRF, spare=grad_RF)
    if into_PRF is not out_PRF:
        out_PRF.copy_(into_PRF)
