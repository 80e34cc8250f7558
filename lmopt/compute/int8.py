"""Linear layers whose products run in 8-bit integers, for training and for inference.

Letters: N rows (tokens), D inputs, F outputs of a layer. A matrix is scaled along the dimension that its product sums
over: q = round(127 x / absmax), and the int32 sums are multiplied by both scales afterwards. A layer's weights stay
as they are kept (float32); they are quantised anew in each pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmopt.arch import formulas
from lmopt.arch.numbers import compute_dtype, largest_magnitude
from lmopt.compute.rounding import stochastic_integer
from lmopt.recipe import Int8

LEVELS = 127
"""Largest 8-bit value used: -128 has no counterpart, and symmetric scales need no zero point."""
LEAST = 1e-12
"""What a row of zeros has in the place of its largest magnitude, so that its scale can be divided by."""
MIN_ROWS = 17
"""CUDA's 8-bit product takes more than 16 rows; fewer run in the type around."""
CUDA_UNIT = 8
"""The other two sizes of CUDA's product must be multiples of it."""


def quantize(x: Tensor, dim: int, *, stochastic: bool = False) -> tuple[Tensor, Tensor]:
    """8-bit values and the float32 scales, kept as size 1 in the dimension `dim` that they are shared along."""
    scale = _largest(x, dim).div_(LEVELS)
    scaled = x * scale.reciprocal()  # float32: bfloat16 has half-steps only above 64
    rounded = stochastic_integer(scaled).clamp_(-LEVELS, LEVELS) if stochastic else scaled.round_()
    return rounded.to(torch.int8), scale


def _largest(x: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension, at least `LEAST`, float32."""
    return largest_magnitude(x, dim).float().clamp_(min=LEAST)


def product(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """The product of two quantised matrices (M x K with scales M x 1, K x P with scales 1 x P)."""
    multiply = _multiplied_on_cuda if left[0].is_cuda else torch._int_mm
    return (multiply(left[0], right[0]) * left[1]).mul_(right[1]).to(dtype)


def _multiplied_on_cuda(left_MK: Tensor, right_KP: Tensor) -> Tensor:
    """The product in the one layout that every version of cuBLAS multiplies: left by rows, right by columns."""
    (rows, inner), columns = left_MK.shape, right_KP.shape[1]
    if rows < MIN_ROWS or inner % CUDA_UNIT or columns % CUDA_UNIT:
        return filled_up_product(left_MK, right_KP)
    return torch._int_mm(left_MK.contiguous(), right_KP.T.contiguous().T)


@torch.library.custom_op("lmopt::filled_up_product", mutates_args=())
def filled_up_product(left_MK: Tensor, right_KP: Tensor) -> Tensor:
    """The product of sizes that CUDA's does not take, zeros added to them: M x P, int32.

    An operator of its own, so that a FLOP counter sees the sizes without the zeros.
    """
    (rows, inner), columns = left_MK.shape, right_KP.shape[1]
    left = nn.functional.pad(left_MK, (0, -inner % CUDA_UNIT, 0, max(0, MIN_ROWS - rows)))
    right = nn.functional.pad(right_KP.T, (0, -inner % CUDA_UNIT, 0, -columns % CUDA_UNIT))
    return torch._int_mm(left.contiguous(), right.contiguous().T)[:rows, :columns].clone()


@filled_up_product.register_fake
def _(left_MK: Tensor, right_KP: Tensor) -> Tensor:
    return left_MK.new_empty(len(left_MK), right_KP.shape[1], dtype=torch.int32)


formulas.counted_by(formulas.product_flops, "lmopt::filled_up_product")


class Int8Linear(nn.Linear):
    """y = x W^T without bias, in 8 bits where `plan` says so and the device has enough rows."""

    plan: Int8
    smooth: bool

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1]).to(compute_dtype(self.weight))
        if len(x_ND) < MIN_ROWS:
            return nn.functional.linear(x, self.weight)
        return _Int8Product.apply(x_ND, self.weight, self.plan, self.smooth).unflatten(0, x.shape[:-1])


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor, plan: Int8, smooth: bool) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        ctx.plan, dtype = plan, x_ND.dtype
        if not plan.forward:
            return x_ND @ weight_FD.to(dtype).T
        if smooth:
            largest_1D = _largest(x_ND, 0)
            x_ND, weight_FD = x_ND / largest_1D, weight_FD * largest_1D
        weight_q, scale_F1 = quantize(weight_FD, 1)
        return product(quantize(x_ND, 1), (weight_q.T, scale_F1.T), dtype)

    @staticmethod
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_ND, weight_FD = ctx.saved_tensors
        stochastic, dtype = ctx.plan.rounding == "stochastic", grad_NF.dtype
        if ctx.plan.grad_input:
            grad_x = product(quantize(grad_NF, 1, stochastic=stochastic), quantize(weight_FD, 0), dtype)
        else:
            grad_x = grad_NF @ weight_FD.to(dtype)
        if ctx.plan.grad_weight:
            grad_q, scale_1F = quantize(grad_NF, 0, stochastic=stochastic)
            grad_weight = product((grad_q.T.contiguous(), scale_1F.T), quantize(x_ND, 0), weight_FD.dtype)
        else:
            grad_weight = (grad_NF.T @ x_ND).to(weight_FD.dtype)
        return grad_x, grad_weight, None, None


class FrozenInt8Linear(nn.Module):
    """y = x W^T for inference: W quantised once, x row by row as it comes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight_FD, scale_F1 = quantize(layer.weight.detach(), 1)
        self.register_buffer("weight_FD", weight_FD)
        self.register_buffer("scale_1F", scale_F1.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        x_ND = x.reshape(-1, x.shape[-1])
        if len(x_ND) < MIN_ROWS:
            weight_FD = (self.weight_FD * self.scale_1F.T).to(dtype)
            return nn.functional.linear(x.to(dtype), weight_FD)
        y_NF = product(quantize(x_ND, 1), (self.weight_FD.T, self.scale_1F), dtype)
        return y_NF.unflatten(0, x.shape[:-1])


def exchange_linears(model: nn.Module, plan: Int8) -> None:
    """Replace the linear layers inside `model.blocks` by 8-bit ones over the same parameters, names unchanged.

    Routers stay, for they run in float32, and so do embedding, head and stacked experts.
    """
    for parent, name, layer in _linears(model):
        new = Int8Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        new.weight, new.plan = layer.weight, plan
        new.smooth = plan.outliers == "smooth" and name == "down"
        setattr(parent, name, new)


def freeze_linears(model: nn.Module) -> None:
    """Replace the same layers by ones for inference, whose float32 weights are gone: a quarter of their memory."""
    for parent, name, layer in _linears(model):
        setattr(parent, name, FrozenInt8Linear(layer))


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of every plain linear layer inside the blocks."""
    return [
        (parent, name, layer)
        for block in model.blocks
        for parent in block.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) and not isinstance(layer, Int8Linear) and name != "router"
    ]
