"""Number formats of training: what a forward pass computes in, and whether the device can.

A precision never changes what is stored: weights, gradients and optimizer state stay float32. Autocast casts each
weight to bfloat16 once a forward pass and runs matrix products and attention in it; reductions stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from lmopt.recipe import Bf16, Fp32


class UnsupportedPrecision(ValueError):
    """The device cannot compute in the number format that was asked for."""


@dataclass(frozen=True, slots=True)
class Compute:
    """How forward passes run. `with compute.forward(): model.loss(...)`; backward needs no context."""

    forward: Callable[[], AbstractContextManager[object]]
    """A fresh context for one forward pass."""
    dtype: torch.dtype
    """What matrix products are computed in."""


def build(config: Fp32 | Bf16, device: torch.device | str = "cpu") -> Compute:
    """The precision of a recipe on a device.

    Raises:
        UnsupportedPrecision: the device has no arithmetic in this format.
    """
    device = torch.device(device)
    if isinstance(config, Fp32):
        return Compute(nullcontext, torch.float32)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UnsupportedPrecision(
            f"precision bf16: {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic (compute capability 8.0 "
            "or newer has)\nhint: use precision {kind: fp32} on this device"
        )
    return Compute(lambda: torch.autocast(device.type, torch.bfloat16), torch.bfloat16)
