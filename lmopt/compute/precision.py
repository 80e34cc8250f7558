"""Number formats of training: what a forward pass computes in, what weights are kept in, and whether the device can.

`fp32` and `bf16` leave the model as it is built, in float32: autocast casts each weight to bfloat16 once a forward pass
and runs matrix products and attention in it; reductions stay float32. `bf16_sr` keeps the weights themselves in
bfloat16, and `int8` exchanges the linear layers of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from lmopt.compute.int8 import exchange_linears
from lmopt.recipe import Bf16, Bf16Stochastic, Fp32, Int8

INT8_CAPABILITY = (7, 5)
"""First CUDA compute capability whose tensor cores multiply 8-bit integers (Turing)."""


class UnsupportedPrecision(ValueError):
    """The device cannot compute in the number format that was asked for."""


@dataclass(frozen=True, slots=True)
class Compute:
    """How forward passes run. `with compute.forward(): model.loss(...)`; backward needs no context."""

    forward: Callable[[], AbstractContextManager[object]]
    """A fresh context for one forward pass."""
    dtype: torch.dtype
    """What matrix products are computed in (`int8`: those that are not in 8 bits)."""
    prepare: Callable[[nn.Module], object] = lambda model: model
    """Changes a model in place to how this precision keeps and multiplies its weights; before an optimizer sees it."""


def build(config: Fp32 | Bf16 | Bf16Stochastic | Int8, device: torch.device | str = "cpu") -> Compute:
    """The precision of a recipe on a device.

    Raises:
        UnsupportedPrecision: the device has no arithmetic in this format.
    """
    device = torch.device(device)
    if isinstance(config, Fp32):
        return Compute(nullcontext, torch.float32)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UnsupportedPrecision(
            f"precision {config.kind}: {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic (compute "
            "capability 8.0 or newer has)\nhint: use precision {kind: fp32} on this device"
        )
    compute = Compute(lambda: torch.autocast(device.type, torch.bfloat16), torch.bfloat16)
    match config:
        case Bf16Stochastic():
            return replace(compute, prepare=keep_in_bfloat16)
        case Int8():
            _refuse_without_int8(device)
            return replace(compute, prepare=lambda model: exchange_linears(model, config))
        case _:
            return compute


@torch.no_grad()
def keep_in_bfloat16(model: nn.Module) -> None:
    """Matrices become bfloat16, rounded to nearest.

    Norms' gains stay float32, for they are few and near 1, and so does the embedding: its gradient adds up a row for
    every place where a token occurs, and a sum of many small numbers is what bfloat16 loses.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.ndim >= 2 and id(parameter) not in embeddings:
            parameter.data = parameter.data.to(torch.bfloat16)


def _refuse_without_int8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < INT8_CAPABILITY:
        raise UnsupportedPrecision(
            f"precision int8: {torch.cuda.get_device_name(device)} has no 8-bit tensor cores (compute capability "
            f"{INT8_CAPABILITY[0]}.{INT8_CAPABILITY[1]} or newer has)\nhint: use precision {{kind: bf16}} there"
        )
