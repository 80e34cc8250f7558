"""What a dispatched operation counts: formulas for operators that torch's counter takes for free, and for our own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Shape = tuple[int, ...]
Formula = Callable[..., int]


def attention_flops(query: Shape, key: Shape, *_: Any, products: int = 2, scale: float | None = None, **__: Any) -> int:
    """`products` matrix products of (queries x keys x head width) a head; grouped key heads cost as if repeated."""
    batch, heads, queries, width = query
    return products * 2 * batch * heads * queries * key[2] * unpadded(width, scale)


def unpadded(width: int, scale: float | None) -> int:
    """Without the zeros that widen heads to a multiple of 8 for CUDA's fused attention, which its scale tells of."""
    told = width if not scale else round(scale**-2)
    return told if width - 8 < told < width else width


def attention_backward_fused(
    _grad: Shape, query: Shape, key: Shape, *_: Any, scale: float | None = None, **__: Any
) -> int:
    """Five products: the scores again, then two for each product of the forward pass (FlashAttention, algorithm 4)."""
    return attention_flops(query, key, products=5, scale=scale)


def attention_backward_kept(_grad: Shape, query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    """Four products: the probabilities were kept."""
    return attention_flops(query, key, products=4)


def product_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """a (M x K) times b (K x N)."""
    return 2 * a[0] * a[1] * b[1]


def product_transposed_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """a (M x K) times the transpose of b (N x K)."""
    return 2 * a[0] * a[1] * b[0]


def linear_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Rows of x (... x D) times the transpose of the weight (F x D)."""
    return 2 * math.prod(x) * weight[0]


def grouped_product_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Groups of rows (a flat, b stacked), of columns (a stacked, b flat), of the inner dimension (both flat), or none.

    The groups divide one dimension between them, so their sizes do not matter to the total.
    """
    rows, inner, columns = a[-2], a[-1], b[-1]
    stacked = a[0] if len(a) == 3 and len(b) == 3 else 1
    return 2 * stacked * rows * inner * columns


def grouped_outer_flops(grad: Shape, x: Shape, _ends: Shape, rows: int, **__: Any) -> int:
    """Rows' gradients (S x F) and inputs (S x D): one outer product for each row of an expert."""
    return 2 * rows * grad[1] * x[1]


def grouped_linear_flops(x: Shape, weight: Shape, _ends: Shape, rows: int, **__: Any) -> int:
    """Rows (S x D), each that is an expert's times its matrix (E x F x D)."""
    return 2 * rows * x[1] * weight[1]


def experts_flops(
    _x: Shape, up: Shape, down: Shape, _kind: str, _token: Shape, _ends: Shape, rows: int, *_: Any, **__: Any
) -> int:
    """Rows, each that is an expert's times both of its matrices (E x G x D, E x D x F)."""
    return 2 * rows * (up[1] * up[2] + down[1] * down[2])


def experts_backward_flops(*arguments: Any, **__: Any) -> int:
    """Two products for each of the forward pass: gradients of its inputs and of its weights."""
    return 2 * experts_flops((), *arguments[6:12])


def experts_fused_backward_flops(*arguments: Any, **__: Any) -> int:
    """The same, and what was kept for it is less."""
    return 2 * experts_flops((), *arguments[3:9])


def route_backward_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """A router's two gradients: of the tokens (N x D) and of its weight (E x D)."""
    return 2 * product_transposed_flops(x, weight)


FORMULAS: Mapping[str, Formula] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention_flops,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward_fused,
    "aten::_scaled_dot_product_flash_attention": attention_flops,
    "aten::_scaled_dot_product_flash_attention_backward": attention_backward_fused,
    "aten::_scaled_dot_product_efficient_attention": attention_flops,
    "aten::_scaled_dot_product_efficient_attention_backward": attention_backward_fused,
    "aten::_scaled_dot_product_cudnn_attention": attention_flops,
    "aten::_scaled_dot_product_cudnn_attention_backward": attention_backward_fused,
    "mkldnn::_linear_pointwise": linear_flops,
    "aten::_int_mm": product_flops,
    "aten::_weight_int8pack_mm": product_transposed_flops,
    "aten::_grouped_mm": grouped_product_flops,
    "aten::_scaled_grouped_mm": grouped_product_flops,
    "lmopt::causal_attention": attention_flops,
    "lmopt::causal_attention_backward": attention_backward_kept,
    "lmopt::experts_forward": experts_flops,
    "lmopt::experts_backward": experts_backward_flops,
    "lmopt::experts_fused_forward": experts_flops,
    "lmopt::experts_fused_backward": experts_fused_backward_flops,
    "lmopt::route_forward": product_transposed_flops,
    "lmopt::route_backward": route_backward_flops,
    "lmopt::filled_up_product": product_flops,
    "lmopt::grouped_linear": grouped_linear_flops,
    "lmopt::grouped_outer": grouped_outer_flops,
}
"""Operators that torch 2.13's counter takes for free on a CPU, our own, and CUDA's attention kernels (which some
versions of torch refuse to count when key heads are grouped)."""


def known_operators(formulas: Mapping[str, Formula]) -> dict[Any, Formula]:
    """The formulas whose operator this version of torch has, by operator."""
    found: dict[Any, Formula] = {}
    for name, formula in formulas.items():
        namespace, _, operator = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            found[packet] = formula
    return found
