"""Root-mean-square normalisation (Zhang & Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension; same type out as in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _EagerRmsNorm.apply(x, self.weight, self.eps)
        return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class _EagerRmsNorm(torch.autograd.Function):
    """The same by hand: torch's CPU version is composed of small parts, and its backward takes 2.5 times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        high = torch.promote_types(x.dtype, torch.float32)
        xf = x.to(high, copy=True)
        scale = torch.linalg.vector_norm(xf, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return xf.mul_(scale).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scale = ctx.saved_tensors
        width = x.shape[-1]
        unit_ND = x.to(scale.dtype, copy=True).mul_(scale).reshape(-1, width)  # x / rms(x)
        grad_ND = grad.to(scale.dtype, copy=True).reshape(-1, width)
        product_ND = grad_ND * unit_ND
        along_N = torch.mv(product_ND, weight_D.to(scale.dtype)).div_(-width)  # what the scale itself depends on
        grad_x_ND = grad_ND.mul_(weight_D).addcmul_(unit_ND, along_N[:, None]).mul_(scale.reshape(-1, 1))
        return grad_x_ND.to(x.dtype).view_as(x), product_ND.sum(0).to(weight_D.dtype), None
