"""What a training step does to rows beside products, on a CPU, by kernels of our own in C++ (rows_fused.cpp).

Torch composes each of these of several passes over memory, and of as many threads that start and meet. Where there are
no kernels, the modules that call these functions compose them; so they do for a compiler, which fuses them itself, and
for tensors without values. What they are given is looked at here and there: the kernels trust it.

Letters: transformer.py; F inner width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmopt import native
from lmopt.arch import fused


def suits(x: Tensor, *widths: int) -> bool:
    """Whether the kernels are there and made for such a tensor with rows of these widths."""
    if torch.compiler.is_compiling():
        return False
    return type(x) is Tensor and x.dtype in fused.ROW_FORMATS and available(x.device, *widths)


def available(device: torch.device, *widths: int) -> bool:
    """Whether there are kernels on this device for rows of these widths."""
    whole = all(width and width % native.MULTIPLE == 0 for width in widths)
    return device.type == "cpu" and whole and fused.obstacle() is None


class Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y, scale_N = _normed(x, weight_D, eps)
        ctx.save_for_backward(x, weight_D, scale_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scale_N = ctx.saved_tensors
        x, grad, weight = x.contiguous(), grad.contiguous(), weight_D.float().contiguous()
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        sizes = scale_N.numel(), x.shape[-1], torch.get_num_threads()
        fused.run(fused.made_for("norm_backward", x), *sizes, x, weight, scale_N, grad, grad_x, grad_weight)
        return grad_x, grad_weight.to(weight_D.dtype), None


def normed(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same without gradients, where kernels are `available`."""
    return _normed(x, weight_D, eps)[0]


def _normed(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """With each row's scale."""
    x, weight = x.contiguous(), weight_D.float().contiguous()
    y, scale_N = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    sizes = scale_N.numel(), x.shape[-1], eps, torch.get_num_threads()
    fused.run(fused.made_for("norm_forward", x), *sizes, x, weight, y, scale_N)
    return y, scale_N


class Activation(torch.autograd.Function):
    """silu(gate) * up of a ... x 2F input, or relu(x)^2 of a ... x F one; the input is what is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        x, ctx.gated = x.contiguous(), kind == "swiglu"
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // (2 if ctx.gated else 1))
        fused.run(fused.made_for("activation_forward", x), ctx.gated, *_rows(y), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        fused.run(fused.made_for("activation_backward", x), ctx.gated, *_rows(grad), x, grad, grad_x)
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
        fused.run(fused.made_for("heads_forward", qkv), *ctx.sizes, cos, sin, qkv, *made)
        ctx.save_for_backward(cos, sin)
        q, k, v = made
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batch, length, heads, key_heads, width, _ = ctx.sizes
        grad_qkv = grads[0].new_empty(batch, length, heads + 2 * key_heads, width)
        name = fused.made_for("heads_backward", grad_qkv)
        fused.run(name, *ctx.sizes, *ctx.saved_tensors, grad_qkv, *(each.contiguous() for each in grads))
        return grad_qkv, None, None, None, None


def softmax_minus_target(logits_NV: Tensor, targets_N: Tensor, ignored: int) -> Tensor:
    """Turn logits in place into softmax - one_hot(target), 0 where it is `ignored` (< 0); each token's nats, float32.

    Raises:
        ValueError: targets are not one integer a token.
        IndexError: one of them is no word of the vocabulary.
    """
    tokens, vocab = logits_NV.shape
    if targets_N.shape != (tokens,) or targets_N.is_floating_point():
        raise ValueError(f"targets must be {tokens} integers, not {tuple(targets_N.shape)} of {targets_N.dtype}")
    targets_N = targets_N.to(torch.int64).contiguous()
    if bool((wrong_N := ((targets_N < 0) & (targets_N != ignored)) | (targets_N >= vocab)).any()):
        raise IndexError(f"target {int(targets_N[wrong_N][0])} of a vocabulary of {vocab}")
    nats_N = logits_NV.new_empty(tokens, dtype=torch.float32)
    name = fused.made_for("softmax_minus_target", logits_NV)
    fused.run(name, tokens, vocab, torch.get_num_threads(), logits_NV, targets_N, nats_N)
    return nats_N


def summarised(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """log(sum(exp)) of each row of float32 logits, and the first of its largest (int64); where `available`."""
    tokens, vocab = logits_NV.shape
    log_sum_N = logits_NV.new_empty(tokens)
    best_N = torch.empty(tokens, dtype=torch.int64, device=logits_NV.device)
    fused.run("summarise", tokens, vocab, torch.get_num_threads(), logits_NV.contiguous(), log_sum_N, best_N)
    return log_sum_N, best_N


def _rows(y: Tensor) -> tuple[int, int, int]:
    return y.numel() // y.shape[-1], y.shape[-1], torch.get_num_threads()
