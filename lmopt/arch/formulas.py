"""FLOPs of our operators and of those that stand in for a product, by the shapes of their arguments.

`counted_by` tells torch's counter, so that every `FlopCounterMode` knows them. One multiply-add is 2 FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

Shape = tuple[int, ...]
Formula = Callable[..., int]


def counted_by(formula: Formula, operator: str) -> None:
    """Have torch's counter count an operator (`lmopt::causal_attention`) by a formula, unless it has one already."""
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    if packet not in flop_registry:
        register_flop_formula(packet)(formula)


def attention_flops(query: Shape, key: Shape, *_: Any, products: int = 2, scale: float | None = None, **__: Any) -> int:
    """`products` matrix products of (queries x keys x head width) a head; grouped key heads cost as if repeated."""
    batch, heads, queries, width = query
    return products * 2 * batch * heads * queries * key[2] * unpadded(width, scale)


def unpadded(width: int, scale: float | None) -> int:
    """Without the zeros that widen heads to a multiple of 8 for CUDA's fused attention, which its scale tells of."""
    told = width if not scale else round(scale**-2)
    return told if width - 8 < told < width else width


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
