"""Rounding at random between the two neighbours of a number, so that it is right on average.

A float32 number is a bfloat16 number followed by 16 more bits. Adding a uniform 16-bit integer to those bits and
cutting them off rounds up with probability (x - lower) / (upper - lower), exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW_BITS = 16
"""Bits that float32 has beyond bfloat16."""


@torch.no_grad()
def stochastic_bfloat16(x: Tensor) -> Tensor:
    """float32 rounded to bfloat16 at random, from torch's generator of the tensor's device. Infinities stay."""
    noise = torch.randint(1 << LOW_BITS, x.shape, dtype=torch.int32, device=x.device)
    bits = noise.add_(x.contiguous().view(torch.int32)).bitwise_and_(-(1 << LOW_BITS))
    return bits.view(torch.float32).to(torch.bfloat16)


@torch.no_grad()
def stochastic_integer(x: Tensor) -> Tensor:
    """Rounded down or up to a whole number at random, in the same type: floor(x + u) with u uniform in [0, 1)."""
    return torch.rand_like(x).add_(x).floor_()
