"""What a dispatched operation counts: formulas for those of torch's operators that its own counter takes for free.

Ours bring their formulas with them (lmopt.arch.formulas).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lmopt.arch.formulas import Formula, Shape, attention_flops, product_flops, product_transposed_flops


def attention_backward_fused(
    _grad: Shape, query: Shape, key: Shape, *_: Any, scale: float | None = None, **__: Any
) -> int:
    """Five products: the scores again, then two for each product of the forward pass (FlashAttention, algorithm 4)."""
    return attention_flops(query, key, products=5, scale=scale)


def grouped_product_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Groups of rows (a flat, b stacked), of columns (a stacked, b flat), of the inner dimension (both flat), or none.

    The groups divide one dimension between them, so their sizes do not matter to the total.
    """
    rows, inner, columns = a[-2], a[-1], b[-1]
    stacked = a[0] if len(a) == 3 and len(b) == 3 else 1
    return 2 * stacked * rows * inner * columns


FORMULAS: Mapping[str, Formula] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention_flops,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward_fused,
    "aten::_scaled_dot_product_flash_attention": attention_flops,
    "aten::_scaled_dot_product_flash_attention_backward": attention_backward_fused,
    "aten::_scaled_dot_product_efficient_attention": attention_flops,
    "aten::_scaled_dot_product_efficient_attention_backward": attention_backward_fused,
    "aten::_scaled_dot_product_cudnn_attention": attention_flops,
    "aten::_scaled_dot_product_cudnn_attention_backward": attention_backward_fused,
    "aten::_int_mm": product_flops,
    "aten::_weight_int8pack_mm": product_transposed_flops,
    "aten::_grouped_mm": grouped_product_flops,
    "aten::_scaled_grouped_mm": grouped_product_flops,
}
"""Operators that torch 2.13's counter takes for free on a CPU, and CUDA's attention kernels, which some versions refuse
to count when key heads are grouped."""


def known_operators(formulas: Mapping[str, Formula]) -> dict[Any, Formula]:
    """The formulas whose operator this version of torch has, by operator."""
    found: dict[Any, Formula] = {}
    for name, formula in formulas.items():
        namespace, _, operator = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            found[packet] = formula
    return found
