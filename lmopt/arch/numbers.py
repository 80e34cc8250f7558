"""Which number format the products of a forward pass run in, and what 8-bit ones are scaled by."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

TILES: bool = torch.cpu._is_amx_tile_supported()
"""Whether the processor has AMX, whose products of many bfloat16 rows are several times as fast as a vector's."""

_WITHOUT = "meta"
"""The device that knows no autocast. torch 2.11 cannot compile torch's own question, `is_autocast_available`."""


def compute_dtype(like: Tensor) -> torch.dtype:
    """The autocast type of the tensor's device where autocast is on, else the tensor's own type."""
    device = like.device.type
    if device != _WITHOUT and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return like.dtype


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which products keep the type of their operands."""
    device = like.device.type
    return nullcontext() if device == _WITHOUT else torch.autocast(device, enabled=False)


def largest_magnitude(x: Tensor, dim: int) -> Tensor:
    """The largest magnitude along a dimension, kept as size 1, in the type of x; NaN where there is one.

    The norm of infinite order, which a CPU takes number by number: 10 to 23 times as long as what is done here.
    """
    return torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True) if x.is_cuda else x.abs().amax(dim, keepdim=True)
