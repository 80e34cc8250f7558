"""The generators that a training draws from."""

from __future__ import annotations

import torch
from torch import Tensor


def states(device: torch.device) -> dict[str, Tensor]:
    """torch's generators as bytes, by device: all that a technique with noise needs to go on where it stopped."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(device: torch.device, kept: dict[str, Tensor]) -> None:
    """Take over what `states` returned."""
    torch.set_rng_state(kept["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(kept["cuda"], device)
