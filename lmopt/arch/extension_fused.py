"""Attention of a few new tokens over a cache, on a CPU, by a kernel of our own in C++ (extension_fused.cpp).

Composed of torch's operations it is a dozen of them a layer, each looks at as many keys as the longest text has, and
torch's fused attention reads keys at a third to a half of the memory's pace where a text has a single query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmopt import native
from lmopt.arch import formulas, fused

MOST_TOKENS = 32
"""New tokens of a text at a time; more, as in reading a prompt, are multiplied as matrices. At 32 this takes 0.4 to
0.6 of the time of torch's operations, and less at fewer (`benchmarks/decode.py --attention`)."""


def suits(dtype: torch.dtype, device: torch.device, head_width: int) -> bool:
    """Whether the kernel is there and made for such numbers and heads of such a width. The first call compiles it."""
    made_for = (
        device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and head_width % (2 * native.MULTIPLE) == 0
    )
    return made_for and fused.obstacle() is None


def _extend(
    qkv_BTF: Tensor, cos_SC: Tensor, sin_SC: Tensor, keys_RKSC: Tensor, values_RKSC: Tensor, start_B: Tensor,
    rows_B: Tensor, seen: int,
) -> Tensor:  # fmt: skip
    del seen
    batch, count, _ = qkv_BTF.shape
    _, key_heads, room, width = keys_RKSC.shape
    heads = qkv_BTF.shape[2] // width - 2 * key_heads
    out_BTD = qkv_BTF.new_empty(batch, count, heads * width)
    sizes = batch, count, heads, key_heads, width, room, torch.get_num_threads()
    operands = qkv_BTF.contiguous(), cos_SC, sin_SC, keys_RKSC, values_RKSC, start_B, rows_B, out_BTD
    fused.run(fused.made_for("extend", qkv_BTF), *sizes, *operands)
    return out_BTD


def _shaped(qkv_BTF: Tensor, cos_SC: Tensor, _sin: Tensor, keys_RKSC: Tensor, *_: Any) -> Tensor:
    """Of tensors without values."""
    batch, count, all_heads = qkv_BTF.shape
    return qkv_BTF.new_empty(batch, count, all_heads - 2 * keys_RKSC.shape[1] * cos_SC.shape[1])


def _flops(qkv: formulas.Shape, *arguments: Any, **__: Any) -> int:
    """Two products of every new token with all keys of its text, as if none were masked."""
    cos, keys, seen = arguments[0], arguments[2], arguments[6]
    return 4 * qkv[1] * seen * (qkv[2] - 2 * keys[1] * cos[1])


_library = torch.library.Library("lmopt", "FRAGMENT")
_library.define(
    "extend_attention(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, Tensor start, "
    "Tensor rows, int seen) -> Tensor"
)
_library.impl("extend_attention", _extend, "CPU")
_library.impl("extend_attention", _shaped, "Meta")
formulas.counted_by(_flops, "lmopt::extend_attention")


def extend(
    qkv_BTF: Tensor, cos_SC: Tensor, sin_SC: Tensor, keys_RKSC: Tensor, values_RKSC: Tensor, start_B: Tensor,
    rows_B: Tensor, seen: int,
) -> Tensor:  # fmt: skip
    """softmax(Q K^T / sqrt(C)) V of each new token with those before it: B x T x (H C).

    Turns queries and keys to their positions, and writes keys and values behind those of the cache. What it is given
    is trusted: contiguous tensors of one type, places within the cache.

    Args:
        qkv_BTF: queries, keys and values of the new tokens, head by head.
        cos_SC: tables of positions from 0 on, as `attention.Rotary` has them; sin_SC likewise.
        keys_RKSC: one layer's cache, with rows of sequences; values_RKSC likewise.
        start_B: tokens that each sequence has in the cache (int64).
        rows_B: the cache's rows that they are (int64).
        seen: tokens that all sequences have with the new ones, which is what FLOPs are counted by.
    """
    return torch.ops.lmopt.extend_attention(
        qkv_BTF, cos_SC, sin_SC, keys_RKSC, values_RKSC, start_B, rows_B, seen
    )  # fmt: skip
