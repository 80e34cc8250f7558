"""Causal self-attention with rotary positions and grouped key heads (letters: see transformer.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmopt.arch import rows_fused
from lmopt.arch.causal import causal_attention
from lmopt.arch.linear import Linear
from lmopt.arch.norm import RmsNorm
from lmopt.cost import keeps_probabilities
from lmopt.recipe import Model


class Rotary(nn.Module):
    """Cosines and sines of rotary positions (Su et al., arXiv 2104.09864), pairs (i, i + C/2) as in Llama."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.base = model.rope_base
        shape = (model.context, model.head_width)
        self.register_buffer("cos_TC", torch.empty(shape), persistent=False)
        self.register_buffer("sin_TC", torch.empty(shape), persistent=False)

    def fill(self) -> None:
        """Compute the tables in float64, once; the sine of the first half carries its minus sign."""
        context, head_width = self.cos_TC.shape
        pairs = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        angle_TC = torch.outer(torch.arange(context, dtype=torch.float64), self.base**-pairs)
        self.cos_TC.copy_(torch.cat([angle_TC.cos(), angle_TC.cos()], dim=1))
        self.sin_TC.copy_(torch.cat([-angle_TC.sin(), angle_TC.sin()], dim=1))

    def forward(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The tables of the first `length` positions."""
        return self.cos_TC[:length].to(dtype), self.sin_TC[:length].to(dtype)


def rotate(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) by its position's angle."""
    if x_BHTC.device.type == "cpu" and not torch.compiler.is_compiling():
        turn = _EagerRotation.apply if torch.is_grad_enabled() else _turned
        return turn(x_BHTC, cos_TC, sin_TC)
    half = x_BHTC.shape[-1] // 2
    return x_BHTC * cos_TC + x_BHTC.roll(half, -1) * sin_TC


class _EagerRotation(torch.autograd.Function):
    """The same in two or three passes instead of four, forward and backward: no product of its own to add."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TC, sin_TC)
        return _turned(x_BHTC, cos_TC, sin_TC)

    @staticmethod
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor, None, None]:
        cos_TC, sin_TC = ctx.saved_tensors
        return _turned(grad_BHTC, cos_TC, -sin_TC), None, None  # a rotation's transpose is the rotation back


def _turned(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """To the same bits either way: halves of a head are slow in bfloat16, three times as slow for heads of 32."""
    half = x_BHTC.shape[-1] // 2
    y_BHTC = x_BHTC * cos_TC
    if x_BHTC.dtype == torch.bfloat16:
        return y_BHTC.addcmul_(x_BHTC.roll(half, -1), sin_TC)
    y_BHTC[..., :half].addcmul_(x_BHTC[..., half:], sin_TC[..., :half])
    y_BHTC[..., half:].addcmul_(x_BHTC[..., :half], sin_TC[..., half:])
    return y_BHTC


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(C)) V, causal."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_width = model.heads, model.key_heads, model.head_width
        self.qkv = Linear(model.width, (model.heads + 2 * model.key_heads) * model.head_width)
        self.output = Linear(model.width, model.width)
        self.norms_all_heads = model.qk_norm_over == "all"
        heads, key_heads = (model.heads, model.key_heads) if self.norms_all_heads else (1, 1)
        self.query_norm = RmsNorm(heads * model.head_width, model.norm_eps) if model.qk_norm else None
        self.key_norm = RmsNorm(key_heads * model.head_width, model.norm_eps) if model.qk_norm else None

    def project(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries B x H x T x C, keys and values B x K x T x C; queries and keys turned to their positions."""
        qkv_BTHC = self.qkv(x_BTD).unflatten(-1, (-1, self.head_width))
        shape, dtype = (x_BTD.shape[1], self.head_width), qkv_BTHC.dtype
        one_table = cos_TC.shape == sin_TC.shape == shape and cos_TC.dtype == sin_TC.dtype == dtype  # for all sequences
        if one_table and self.query_norm is None and rows_fused.suits(qkv_BTHC, self.head_width // 2):
            return rows_fused.Heads.apply(qkv_BTHC, cos_TC, sin_TC, self.heads, self.key_heads)
        q_BTHC, k_BTKC, v_BTKC = qkv_BTHC.split([self.heads, self.key_heads, self.key_heads], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHC, k_BTKC = self._normed(q_BTHC, self.query_norm), self._normed(k_BTKC, self.key_norm)
        q_BHTC, k_BKTC, v_BKTC = (part.transpose(1, 2) for part in (q_BTHC, k_BTKC, v_BTKC))
        return rotate(q_BHTC, cos_TC, sin_TC), rotate(k_BKTC, cos_TC, sin_TC), v_BKTC

    def _normed(self, x_BTHC: Tensor, norm: RmsNorm) -> Tensor:
        return norm(x_BTHC.flatten(2)).view_as(x_BTHC) if self.norms_all_heads else norm(x_BTHC)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        q_BHTC, k_BKTC, v_BKTC = self.project(x_BTD, cos_TC, sin_TC)
        return self.output(attend(q_BHTC, k_BKTC, v_BKTC, segments_BT).flatten(2))


def attend(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Causal attention by the kernel that is fastest on the tensors' device: B x T x H x C.

    Where `segments_BT` numbers the documents of a packed sequence, none sees another.
    """
    if keeps_probabilities(q_BHTC.device.type, q_BHTC.shape[2]):
        keep = torch.is_grad_enabled() and (q_BHTC.requires_grad or k_BKTC.requires_grad or v_BKTC.requires_grad)
        return causal_attention(q_BHTC, k_BKTC, v_BKTC, keep, segments_BT)[0]
    seen_B1TT = None if segments_BT is None else _seen(segments_BT)
    return torch_attention(q_BHTC, k_BKTC, v_BKTC, seen_B1TT, causal=seen_B1TT is None).transpose(1, 2)


def torch_attention(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Attention by one of torch's fused kernels: B x H x T x C. Query heads may share key heads."""
    width = q_BHTC.shape[-1]
    if q_BHTC.device.type == "cuda":
        q_BHTC, k_BKSC, v_BKSC = _for_fused_kernels(q_BHTC, k_BKSC, v_BKSC, mask is not None)
    grouped = bool(k_BKSC.shape[1] != q_BHTC.shape[1])  # a tensor under a tracer
    scale = width**-0.5 if q_BHTC.shape[-1] != width else None
    y_BHTC = nn.functional.scaled_dot_product_attention(
        q_BHTC, k_BKSC, v_BKSC, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return y_BHTC if scale is None else y_BHTC[..., :width]


FUSED_UNIT = 8
"""CUDA's fused kernels take heads of a multiple of this width."""


def _for_fused_kernels(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What every fused kernel of CUDA takes; for anything else torch falls back on one that holds all T x S scores.

    Zeros widen heads and change no score. Key heads are repeated for the only fused kernel that computes in float32 or
    under a mask, which knows no grouped ones in torch 2.11.
    """
    zeros = -q_BHTC.shape[-1] % FUSED_UNIT
    if zeros:
        q_BHTC, k_BKSC, v_BKSC = (nn.functional.pad(x, (0, zeros)) for x in (q_BHTC, k_BKSC, v_BKSC))
    sharing = q_BHTC.shape[1] // k_BKSC.shape[1]
    if sharing > 1 and (masked or q_BHTC.dtype == torch.float32):
        k_BKSC, v_BKSC = (x.repeat_interleave(sharing, 1) for x in (k_BKSC, v_BKSC))
    return q_BHTC, k_BKSC, v_BKSC


def _seen(segments_BT: Tensor) -> Tensor:
    """Which keys each query sees: those of its own segment up to itself."""
    same_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    return same_B1TT.tril()
