"""Next-token cross-entropy fused with the output head, a chunk of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lmopt.arch import rows_fused
from lmopt.arch.matmul import mm
from lmopt.arch.numbers import compute_dtype

IGNORED = -100
"""Targets of this value are left out of the mean (torch's convention)."""
CHUNK_BYTES = 64 * 2**20
"""Logits held at once, counted as float32 (they are half of that in bfloat16). Each chunk adds to the gradient of the
whole head, a pass over it in float32; four times less took a step of 30M parameters on two AMX cores 2% longer."""
BLOCK_BYTES = 2 * 2**20
"""Float32 logits turned into gradients at once: measured best of 0.25 to 16 MiB on two cores with 1 MiB of L2 each."""


class _HeadCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass: what backward needs is ready when forward returns, the logits are gone."""

    @staticmethod
    def forward(
        ctx, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, chunk: int, fused: bool
    ) -> Tensor:
        weight = weight_VD.to(dtype)
        count = (targets_N != IGNORED).sum().clamp(min=1)
        high = torch.promote_types(x_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x_ND.device)
        wants_grad = any(ctx.needs_input_grad)
        grad_x_ND = torch.empty(x_ND.shape, dtype=dtype, device=x_ND.device) if wants_grad else None
        grad_weight_VD = None if len(x_ND) else torch.zeros_like(weight_VD, dtype=high)
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            x, targets = x_ND[rows].to(dtype), targets_N[rows]
            logits = mm(x, weight.T)
            if fused:
                total += rows_fused.softmax_minus_target(logits, targets, IGNORED).sum()
            else:
                total += _softmax_minus_target(logits, targets, high)
            if grad_x_ND is None:
                continue
            ignored = (targets == IGNORED)[:, None]
            mm(logits, weight, out=grad_x_ND[rows]).masked_fill_(ignored, 0)
            part_VD = outer(logits, x.masked_fill(ignored, 0))
            grad_weight_VD = part_VD.to(high) if grad_weight_VD is None else grad_weight_VD.add_(part_VD)
        if wants_grad:
            ctx.save_for_backward(grad_x_ND, grad_weight_VD, count)
            ctx.dtypes = x_ND.dtype, weight_VD.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_x_ND, grad_weight_VD, count = ctx.saved_tensors
        grad = grad / count
        x_dtype, weight_dtype = ctx.dtypes
        return (grad_x_ND * grad).to(x_dtype), (grad_weight_VD * grad).to(weight_dtype), *[None] * 4


MANY_ROWS = 4
"""Rows for each of the head's columns from which on a copy of `x` pays in `outer`. On one core with AMX that takes
0.67 of the time at 2,048 x 512 with 8,192 tokens of vocabulary, 0.75 at width 1,024; twice the time at 512 x 768."""


def outer(grad_NV: Tensor, x_ND: Tensor) -> Tensor:
    """grad^T x, V x D; on a CPU in bfloat16 through x^T grad, whose operands lie as the product reads them."""
    rows, width = x_ND.shape
    eager = x_ND.device.type == "cpu" and x_ND.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    if eager and rows >= MANY_ROWS * width:
        return torch.mm(x_ND.T.contiguous(), grad_NV).T.contiguous()
    return mm(grad_NV.T, x_ND)


def _softmax_minus_target(logits_NV: Tensor, targets_N: Tensor, high: torch.dtype) -> Tensor:
    """Turn logits in place into softmax - one_hot(target), the gradient of a token's loss; returns the summed loss.

    A few rows at a time, so that the one float32 copy, in which softmax runs in place, stays in a core's cache. The
    loss is read off the target's probability: no pass of its own, no second exponential.
    """
    total = torch.zeros((), dtype=high, device=logits_NV.device)
    # a tracer's or counter's stand-in for a tensor has no values to look at
    whole = logits_NV.device.type != "cpu" or torch.compiler.is_compiling() or type(logits_NV) is not Tensor
    block = len(logits_NV) if whole else max(1, BLOCK_BYTES // (high.itemsize * logits_NV.shape[1]))
    for logits, targets in zip(logits_NV.split(block), targets_N.split(block), strict=True):
        index = targets.masked_fill(targets == IGNORED, 0)[:, None]  # any other that is no token is an error
        z = logits.to(high, copy=True)
        p = torch.softmax(z, dim=-1) if whole else torch.softmax(z, dim=-1, out=z)
        nats = _whole_nats(z, p, index) if whole else _nats(logits, p, index)
        total += (nats * (targets != IGNORED)).sum()
        logits.copy_(p.scatter_add_(1, index, torch.full_like(index, -1, dtype=high)))
    return total


def _nats(logits_NV: Tensor, p_NV: Tensor, index_N1: Tensor) -> Tensor:
    """-log p[target]; from the logits where a probability is too small for the type (a loss above 87 nats)."""
    p_N = p_NV.gather(1, index_N1)[:, 0]
    if bool((p_N < torch.finfo(p_N.dtype).tiny).any()):
        z = logits_NV.to(p_NV.dtype)
        return z.logsumexp(-1) - z.gather(1, index_N1)[:, 0]
    return p_N.log_().neg_()


def _whole_nats(z_NV: Tensor, p_NV: Tensor, index_N1: Tensor) -> Tensor:
    """The same without looking at a value: log-sum-exp from the largest entry, max(p) = exp(max(z) - logsumexp(z))."""
    return z_NV.amax(-1) - p_NV.amax(-1).log_() - z_NV.gather(1, index_N1)[:, 0]


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x W^T)[target] in nats a token: a float32 scalar.

    Products run in the autocast type, softmax and sums in float32. At most `CHUNK_BYTES` of logits exist at once.
    """
    chunk = max(1, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    if not torch.is_grad_enabled():
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    dtype = compute_dtype(weight_VD)
    fused = dtype == x_ND.dtype and rows_fused.suits(x_ND, len(weight_VD))
    return _HeadCrossEntropy.apply(x_ND, weight_VD, targets_N, dtype, chunk, fused)
