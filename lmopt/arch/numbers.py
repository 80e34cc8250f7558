"""Which number format the products of a forward pass run in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(like: Tensor) -> torch.dtype:
    """The autocast type of the tensor's device where autocast is on, else the tensor's own type."""
    device = like.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return like.dtype
