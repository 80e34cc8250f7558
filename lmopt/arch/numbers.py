"""Which number format the products of a forward pass run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(like: Tensor) -> torch.dtype:
    """The autocast type of the tensor's device where autocast is on, else the tensor's own type."""
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return like.dtype


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which products keep the type of their operands (`meta` tensors know no autocast)."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
