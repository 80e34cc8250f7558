"""Next-token cross-entropy fused with the output head, a chunk of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lmopt.arch.numbers import compute_dtype

IGNORED = -100
"""Targets of this value are left out of the mean (torch's convention)."""
CHUNK_BYTES = 16 * 2**20
"""Float32 logits held at once. Small enough for a last-level cache, large enough for fast products."""


class _HeadCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass: what backward needs is ready when forward returns, the logits are gone."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, chunk: int) -> Tensor:
        weight = weight_VD.to(dtype)
        count = (targets_N != IGNORED).sum().clamp(min=1)
        high = torch.promote_types(x_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x_ND.device)
        wants_grad = any(ctx.needs_input_grad)
        grad_x_ND = torch.empty(x_ND.shape, dtype=dtype, device=x_ND.device) if wants_grad else None
        grad_weight_VD = torch.zeros_like(weight_VD) if wants_grad else None
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            x, targets = x_ND[rows].to(dtype), targets_N[rows]
            log_p = torch.log_softmax(torch.mm(x, weight.T).to(high), dim=-1)
            kept = targets != IGNORED
            index = targets.clamp(min=0)[:, None]
            total -= (log_p.gather(1, index)[:, 0] * kept).sum()
            if grad_x_ND is None or grad_weight_VD is None:
                continue
            p = log_p.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=high))
            p = p.mul_((kept.to(high) / count)[:, None]).to(dtype)
            torch.mm(p, weight, out=grad_x_ND[rows])
            grad_weight_VD += torch.mm(p.T, x)
        if wants_grad:
            ctx.save_for_backward(grad_x_ND, grad_weight_VD)
            ctx.x_dtype = x_ND.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        return (grad_x_ND * grad).to(ctx.x_dtype), grad_weight_VD * grad, None, None, None


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x W^T)[target] in nats a token: a float32 scalar.

    Products run in the autocast type, softmax and sums in float32. At most `CHUNK_BYTES` of logits exist at once.
    """
    chunk = max(1, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    if not torch.is_grad_enabled():
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    return _HeadCrossEntropy.apply(x_ND, weight_VD, targets_N, compute_dtype(weight_VD), chunk)
