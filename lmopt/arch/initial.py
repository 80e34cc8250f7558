"""Where training starts: each parameter drawn by itself, from (seed, stream, its name).

Two arms that share a parameter's name and shape start it from the same numbers, whatever else they hold, and a
parameter does not change when another is added.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02
"""GPT-2's embedding scale (Radford et al. 2019, released code); with a tied head it keeps first logits small."""
PLAIN = ("cpu", torch.float32)
RESIDUAL_OUTPUTS = ("attention.output.weight", "ffn.down", "ffn.down.weight", "ffn.shared.down.weight")
"""Matrices that write to the residual stream: scaled by 1/sqrt(2 x layers) (GPT-2, section 2.3)."""
ZEROS = ("router.noise",)
"""Matrices that start from zero: a router's noise is then of one size for all (Shazeer et al., 1701.06538, app. A)."""


def draw_parameters(
    model: nn.Module, *, seed: int, stream: int, layers: int, place: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Fill every parameter in place: norms with 1, embeddings N(0, 0.02), matrices N(0, 1/fan_in) or 0.

    Args:
        place: writes what was drawn (float32, on the CPU) into a parameter that is not a whole one of that kind; a
            parameter that is gets drawn where it lies. Either way the numbers are the same.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            if name.endswith(ZEROS):
                parameter.zero_()
                continue
            generator = torch.Generator().manual_seed(parameter_seed(seed, stream, name))
            in_place = type(parameter) is nn.Parameter and (parameter.device.type, parameter.dtype) == PLAIN
            draw = parameter if in_place else torch.empty(parameter.shape)
            draw.normal_(0.0, _std(name, parameter, layers), generator=generator)
            if not in_place:
                place(parameter, draw)


def parameter_seed(seed: int, stream: int, name: str) -> int:
    """A 63-bit seed for one parameter."""
    digest = hashlib.sha256(f"{seed}/{stream}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _std(name: str, parameter: Tensor, layers: int) -> float:
    if name == "embedding.weight":
        return EMBEDDING_STD
    std = 1 / math.sqrt(parameter.shape[-1])  # every matrix is stored outputs x inputs, as nn.Linear does
    return std / math.sqrt(2 * layers) if name.endswith(RESIDUAL_OUTPUTS) else std
