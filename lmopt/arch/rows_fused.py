"""What a training step does to bfloat16 rows beside products, on a CPU, by kernels of our own in C++ (rows_fused.cpp).

Torch composes each of these of several passes over memory, and of as many threads that start and meet. Where there are
no kernels, the modules that call these functions compose them; so they do for a compiler, which fuses them itself, and
for tensors without values.

Letters: transformer.py; F inner width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmopt import native
from lmopt.arch import fused


def suits(x: Tensor, *widths: int) -> bool:
    """Whether the kernels are there and made for such a tensor, of a training, with rows of these widths."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not any(width % native.MULTIPLE for width in widths) and there(x)


def there(x: Tensor) -> bool:
    """Whether the kernels are there and made for such a tensor."""
    plain = type(x) is Tensor and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return plain and fused.obstacle() is None


class Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight_D.float()
        y, scale_N = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        _call("norm_forward", scale_N.numel(), x.shape[-1], eps, torch.get_num_threads(), x, weight, y, scale_N)
        ctx.save_for_backward(x, weight_D, scale_N)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scale_N = ctx.saved_tensors
        grad, weight = grad.contiguous(), weight_D.float()
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        sizes = scale_N.numel(), x.shape[-1], torch.get_num_threads()
        _call("norm_backward", *sizes, x, weight, scale_N, grad, grad_x, grad_weight)
        return grad_x, grad_weight.to(weight_D.dtype), None


class Activation(torch.autograd.Function):
    """silu(gate) * up of a ... x 2F input, or relu(x)^2 of a ... x F one; the input is what is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        x, ctx.gated = x.contiguous(), kind == "swiglu"
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // (2 if ctx.gated else 1))
        _call("activation_forward", ctx.gated, *_rows(y), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        _call("activation_backward", ctx.gated, *_rows(grad), x, grad, grad_x)
        return grad_x, None


class Heads(torch.autograd.Function):
    """Queries, keys and values (B x T x (H + 2K) x C) to one tensor each, heads before positions; the first two turned.

    As `attention.rotate` turns them; C is the width of a head.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor, heads: int, key_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv, cos, sin = (each.contiguous() for each in (qkv_BTHC, cos_TC, sin_TC))
        batch, length, _, width = qkv.shape
        made = [qkv.new_empty(batch, count, length, width) for count in (heads, key_heads, key_heads)]
        ctx.sizes = batch, length, heads, key_heads, width, torch.get_num_threads()
        _call("heads", False, *ctx.sizes, cos, sin, qkv, *made)
        ctx.save_for_backward(cos, sin)
        q, k, v = made
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batch, length, heads, key_heads, width, _ = ctx.sizes
        grad_qkv = grads[0].new_empty(batch, length, heads + 2 * key_heads, width)
        _call("heads", True, *ctx.sizes, *ctx.saved_tensors, grad_qkv, *(each.contiguous() for each in grads))
        return grad_qkv, None, None, None, None


def causal_softmax(scores: Tensor, start: int, scale: float, p: Tensor) -> None:
    """Into p, M x R x S as the scores are, the softmax of `scale` x scores; query r sees keys 0 to `start` + r."""
    _call("causal_softmax_forward", *scores.shape, start, scale, torch.get_num_threads(), scores, p)


def causal_softmax_backward(p: Tensor, start: int, scale: float, grad: Tensor) -> None:
    """Turn the gradient of p into that of the scores, in place."""
    _call("causal_softmax_backward", *p.shape, start, scale, torch.get_num_threads(), p, grad)


def softmax_minus_target(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Turn logits in place into softmax - one_hot(target), 0 where a target is negative; each token's nats, float32."""
    if len(targets_N) and int(targets_N.max()) >= logits_NV.shape[1]:
        raise IndexError(f"target {int(targets_N.max())} of a vocabulary of {logits_NV.shape[1]}")
    nats_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
    _call("softmax_minus_target", *logits_NV.shape, torch.get_num_threads(), logits_NV, targets_N.contiguous(), nats_N)
    return nats_N


def _rows(y: Tensor) -> tuple[int, int, int]:
    return y.numel() // y.shape[-1], y.shape[-1], torch.get_num_threads()


def _call(name: str, *arguments: bool | int | float | Tensor) -> None:
    if not fused.call(name, *arguments):
        raise MemoryError(f"not enough memory for {name}")
