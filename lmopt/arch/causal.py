"""Causal attention on a CPU: matrix products over blocks of queries, probabilities kept for backward.

Torch's fused CPU kernel spends most of its time outside the matrix units, and its backward computes the scores again:
at 8 sequences of 256 tokens in bfloat16 it takes four times as long as this. The price is memory, half of heads x
length x length numbers a sequence, so longer sequences than `cost.KEPT_PROBABILITIES_LENGTH` go to the fused one.

Where kernels can be had, both passes are attention_fused.cpp: the same blocks and probabilities, but scores that stay
in a core's cache. What is here composes them of torch's products.

Both directions are operators of their own, so that a FLOP counter sees one product-bearing operation, length x length,
as it does for a fused kernel (letters: see transformer.py; G query heads share a key head, R = G x rows of a block).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lmopt import native
from lmopt.arch import formulas, fused

BLOCK = 128
"""Queries handled at once: a block sees only the keys up to its end, which skips most of the masked half. Measured on
a CPU with AVX512-BF16: 64 and 128 equal at 256 tokens, 128 to 256 best at 512 and more."""


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, BLOCK):
        yield start, min(start + BLOCK, length)


def _kept(length: int) -> int:
    """Probabilities kept for one head of one sequence."""
    return sum((end - start) * end for start, end in _blocks(length))


def _group(x_BHTC: Tensor, key_heads: int, rows: slice) -> Tensor:
    """A block of rows of all heads that share a key head, one matrix each: (B K) x R x C."""
    batch, heads, _, width = x_BHTC.shape
    return x_BHTC[:, :, rows].reshape(batch * key_heads, heads // key_heads * (rows.stop - rows.start), width)


def _has_kernel(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, *others: Tensor) -> bool:
    """Whether attention_fused.cpp is there, made for such operands, and has work for every thread: a key head each."""
    batch, heads, length, width = q_BHTC.shape
    key_heads = k_BKTC.shape[1]
    alike = all(each.dtype == q_BHTC.dtype and each.device == q_BHTC.device for each in (k_BKTC, v_BKTC, *others))
    shaped = k_BKTC.shape == v_BKTC.shape == (batch, key_heads, length, width) and q_BHTC.numel() > 0
    enough = key_heads and heads % key_heads == 0 and batch * key_heads >= torch.get_num_threads()
    whole = length % native.MULTIPLE == width % native.MULTIPLE == 0
    made_for = q_BHTC.dtype in fused.ROW_FORMATS and q_BHTC.device.type == "cpu" and whole
    return alike and shaped and bool(enough) and made_for and fused.obstacle() is None


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@functools.cache
def _mask(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf above the diagonal, added to a block's scores."""
    return torch.full((rows, rows), float("-inf"), dtype=dtype, device=device).triu_(1)


@torch.library.custom_op("lmopt::causal_attention", mutates_args=())
def causal_attention(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, keep: bool, segments_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(C)) V where no query sees a later key, nor one of another segment where these are given.

    Returns the result as B x T x H x C and, if `keep`, the probabilities of all blocks in one flat tensor (else empty).
    """
    batch, heads, length, width = q_BHTC.shape
    key_heads = k_BKTC.shape[1]
    out_BTHC = q_BHTC.new_empty(batch, length, heads, width)
    kept = q_BHTC.new_empty(batch * heads * _kept(length) if keep else 0)
    if segments_BT is None and _has_kernel(q_BHTC, k_BKTC, v_BKTC):
        operands = q_BHTC.contiguous(), k_BKTC.contiguous(), v_BKTC.contiguous()
        sizes = batch, heads, key_heads, length, width, torch.get_num_threads()
        name = fused.made_for("attention_forward", q_BHTC)
        fused.run(name, *sizes, *operands, out_BTHC, kept if keep else None)
        return out_BTHC, kept
    scaled_BHTC = q_BHTC * width**-0.5
    k, v = k_BKTC.flatten(0, 1), v_BKTC.flatten(0, 1)
    mask = _mask(BLOCK, q_BHTC.dtype, q_BHTC.device)
    used = 0
    for start, end in _blocks(length):
        rows = end - start
        scores = torch.bmm(_group(scaled_BHTC, key_heads, slice(start, end)), k[:, :end].transpose(1, 2))
        scores.view(batch * heads, rows, end)[:, :, start:].add_(mask[:rows, :rows])
        if segments_BT is not None:
            apart_BRS = segments_BT[:, start:end, None] != segments_BT[:, None, :end]
            scores.view(batch, heads, rows, end).masked_fill_(apart_BRS[:, None], float("-inf"))
        if keep:
            p = kept[used : used + scores.numel()].view_as(scores)
            torch.softmax(scores, -1, out=p)
            used += p.numel()
        else:
            p = torch.softmax(scores, -1)
        block = torch.bmm(p, v[:, :end]).view(batch, heads, rows, width)
        out_BTHC[:, start:end] = block.transpose(1, 2)
    return out_BTHC, kept


@causal_attention.register_fake
def _(q_BHTC: Tensor, _k: Tensor, _v: Tensor, keep: bool, _segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q_BHTC.shape
    kept = batch * heads * _kept(length) if keep else 0
    return q_BHTC.new_empty(batch, length, heads, width), q_BHTC.new_empty(kept)


formulas.counted_by(formulas.attention_flops, "lmopt::causal_attention")


@torch.library.custom_op("lmopt::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    grad_BTHC: Tensor, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in their shapes: two products for each of the forward pass's."""
    batch, heads, length, width = q_BHTC.shape
    key_heads = k_BKTC.shape[1]
    fits = grad_BTHC.shape == (batch, length, heads, width) and kept.numel() == batch * heads * _kept(length)
    if fits and _has_kernel(q_BHTC, k_BKTC, v_BKTC, grad_BTHC, kept):
        operands = [each.contiguous() for each in (grad_BTHC, q_BHTC, k_BKTC, v_BKTC, kept)]
        made = _empty(q_BHTC), _empty(k_BKTC), _empty(v_BKTC)
        sizes = batch, heads, key_heads, length, width, torch.get_num_threads()
        fused.run(fused.made_for("attention_backward", q_BHTC), *sizes, *operands, *made)
        return made
    grad_BHTC = grad_BTHC.transpose(1, 2)
    k, v = k_BKTC.flatten(0, 1), v_BKTC.flatten(0, 1)
    scale = width**-0.5
    grad_q, grad_k, grad_v = _empty(q_BHTC), torch.empty_like(k), torch.empty_like(v)
    used = kept.numel()
    for start, end in reversed(list(_blocks(length))):
        rows = slice(start, end)
        q, grad = _group(q_BHTC, key_heads, rows), _group(grad_BHTC, key_heads, rows)
        used -= q.shape[0] * q.shape[1] * end
        p = kept[used : used + q.shape[0] * q.shape[1] * end].view(q.shape[0], q.shape[1], end)
        grad_p = torch.bmm(grad, v[:, :end].transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        if end == length:  # the last block sees every key: it sets what the others add to
            torch.bmm(p.transpose(1, 2), grad, out=grad_v)
            torch.bmm(grad_scores.transpose(1, 2), q, out=grad_k)
        else:
            grad_v[:, :end] += torch.bmm(p.transpose(1, 2), grad)
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q)
        grad_q[:, :, rows] = torch.bmm(grad_scores, k[:, :end]).view(batch, heads, end - start, width)
    return grad_q.mul_(scale), grad_k.mul_(scale).view(k_BKTC.shape), grad_v.view(v_BKTC.shape)


@causal_attention_backward.register_fake
def _(_grad: Tensor, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, _kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q_BHTC.new_empty(q_BHTC.shape), k_BKTC.new_empty(k_BKTC.shape), v_BKTC.new_empty(v_BKTC.shape)


formulas.counted_by(formulas.attention_backward_kept, "lmopt::causal_attention_backward")


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    q_BHTC, k_BKTC, v_BKTC, keep, _segments = inputs  # backward sees them in the probabilities
    if not keep:
        raise ValueError("causal_attention: a gradient needs keep=True")
    ctx.save_for_backward(q_BHTC, k_BKTC, v_BKTC, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the gradient of what is kept


def _backward(ctx: Any, grad_BTHC: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *causal_attention_backward(grad_BTHC, *ctx.saved_tensors), None, None


causal_attention.register_autograd(_backward, setup_context=_save)
