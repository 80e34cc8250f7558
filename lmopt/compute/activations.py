"""How a block is run in training: its activations kept for backward, or computed again there.

A builder here takes its description and the number of a block, and returns what runs that block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmopt.recipe import KeepActivations, Recompute

Forward = Callable[..., Any]
"""A block's own forward pass."""
Run = Callable[..., Any]
"""Calls a block's forward pass with its tensors: `run(forward, x_BTD, ...)`."""


def keep(_config: KeepActivations, _layer: int) -> Run:
    """Just run it."""
    return _run


def recompute(config: Recompute, layer: int) -> Run:
    """Run block `layer` and forget all but its input, where the recipe says so for this block."""
    return _run_and_forget if layer % config.every == 0 else _run


def _run(forward: Forward, *tensors: Tensor) -> Any:
    return forward(*tensors)


def _run_and_forget(forward: Forward, *tensors: Tensor) -> Any:
    """Torch's own checkpointing, which stops computing again at the last thing that backward needs.

    Autocast must not remember the cast of a weight beyond the block: its cache would hold a second copy of the model.
    """
    if not torch.is_grad_enabled():
        return forward(*tensors)
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return checkpoint(forward, *tensors, use_reentrant=False)
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
        return checkpoint(forward, *tensors, use_reentrant=False)
