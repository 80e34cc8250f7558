"""What experts compute on a CPU in bfloat16 while they train, by a kernel of our own in C++ (experts_fused.cpp).

It takes an expert's weights and the tokens as they are: what `experts_cpu` asks torch for one by one - rows gathered,
weights cast, products, activations, gates, gradients cast back - happens on the way of a tile through the cache.

Letters: experts.py; P parts of the inner layer, G = P x F.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from lmopt import native


@torch.compiler.assume_constant_result
def obstacle() -> str | None:
    """Why the kernel cannot be had in this process; None if it can. The first call compiles it."""
    return _obstacle() if torch.backends.mkldnn.enabled else "oneDNN is switched off (torch.backends.mkldnn)"


@functools.cache
def _obstacle() -> str | None:
    try:
        _kernel()
    except (native.BuildError, OSError) as error:
        return str(error)
    return None


def unsuited(dtype: torch.dtype, device: torch.device, width: int, hidden: int) -> str | None:
    """Why a training in this format, on this device, with these widths goes without the kernel; None if it has it."""
    if dtype != torch.bfloat16 or device.type != "cpu":
        return f"made for bfloat16 on a CPU, not for {str(dtype).removeprefix('torch.')} on {device.type}"
    if width % native.MULTIPLE or hidden % native.MULTIPLE:
        return f"widths {width} and {hidden} must be multiples of {native.MULTIPLE}"
    return obstacle()


def suits(x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor) -> bool:
    """Whether the kernel is there and made for such tensors, of a training."""
    weights = up_EGD.dtype == down_EDF.dtype and up_EGD.dtype in (torch.float32, torch.bfloat16)
    made_for = unsuited(x_ND.dtype, x_ND.device, x_ND.shape[1], down_EDF.shape[2]) is None
    return torch.is_grad_enabled() and weights and made_for


# Operators, as in experts_cpu.py: rows an expert never become shapes; `rows` are counted as FLOPs.


@torch.library.custom_op("lmopt::experts_fused_forward", mutates_args=())
def fused_forward(
    x_ND: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: str,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Results, S x D, and for their gradients the inner layer, S x G, in an order of the kernel's own."""
    x_ND, up_EGD, down_EDF = x_ND.contiguous(), up_EGD.contiguous(), down_EDF.contiguous()
    y_SD, inner_SG = made = _made(x_ND, up_EGD, token_S)
    _call("forward", kind, up_EGD, down_EDF, token_S, ends_E, x_ND, up_EGD, down_EDF, y_SD, inner_SG)
    return made


@fused_forward.register_fake
def _(
    x_ND: Tensor, up_EGD: Tensor, _down: Tensor, _kind: str, token_S: Tensor, _ends: Tensor, _rows: int
) -> tuple[Tensor, Tensor]:
    return _made(x_ND, up_EGD, token_S)


def _made(x_ND: Tensor, up_EGD: Tensor, token_S: Tensor) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(len(token_S), x_ND.shape[1]), x_ND.new_empty(len(token_S), up_EGD.shape[1])


@torch.library.custom_op("lmopt::experts_fused_backward", mutates_args=())
def fused_backward(
    grad_ND: Tensor,
    gate_S: Tensor,
    x_ND: Tensor,
    inner_SG: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: str,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gathered rows, of their gates (float32), and of both stacks of matrices, in these's type."""
    grad_ND, x_ND, up_EGD, down_EDF = (each.contiguous() for each in (grad_ND, x_ND, up_EGD, down_EDF))
    gate_S = gate_S.float().contiguous()
    made = _gradients(gate_S, x_ND, up_EGD, down_EDF)
    operands = grad_ND, gate_S, x_ND, inner_SG, up_EGD, down_EDF
    _call("backward", kind, up_EGD, down_EDF, token_S, ends_E, *operands, *made)
    return made


@fused_backward.register_fake
def _(
    _grad: Tensor,
    gate_S: Tensor,
    x_ND: Tensor,
    _inner: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    _kind: str,
    _token: Tensor,
    _ends: Tensor,
    _rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(gate_S, x_ND, up_EGD, down_EDF)


def _gradients(gate_S: Tensor, x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_up, grad_down = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (up_EGD, down_EDF))
    grad_x_SD = x_ND.new_empty(len(gate_S), x_ND.shape[1])
    return grad_x_SD, torch.empty_like(gate_S, dtype=torch.float32), grad_up, grad_down


# --- the library ---------------------------------------------------------------------------------


def _call(name: str, kind: str, up_EGD: Tensor, down_EDF: Tensor, token_S: Tensor, ends_E: Tensor, *of: Tensor) -> None:
    experts, width, hidden = down_EDF.shape
    done = _kernel()[name](
        kind == "swiglu",
        up_EGD.dtype == torch.float32,
        *(width, hidden, experts, torch.get_num_threads()),
        *(tensor.data_ptr() for tensor in (token_S, ends_E, *of)),
    )
    if not done:
        raise MemoryError(f"not enough memory for the {name} pass of {experts} experts ({len(token_S)} rows)")


@functools.cache
def _kernel() -> dict[str, Any]:
    """Both passes. They follow torch, whose libraries they call, into the process."""
    found = ctypes.CDLL(str(native.library(native.EXPERTS)))
    found.lmopt_experts_work.restype = ctypes.c_bool
    if not found.lmopt_experts_work():
        raise native.BuildError("oneDNN multiplies no bfloat16 here (ONEDNN_MAX_CPU_ISA may forbid it)")
    passes = {"forward": found.lmopt_experts_forward, "backward": found.lmopt_experts_backward}
    sizes = [ctypes.c_bool, ctypes.c_bool, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    for name, pointers in (("forward", 7), ("backward", 12)):
        passes[name].argtypes = sizes + [ctypes.c_void_p] * pointers
        passes[name].restype = ctypes.c_bool
    return passes
