"""Float32 matrix products through oneDNN where torch's own are slow (letters: N rows, K inner, D in, F out).

torch multiplies float32 on a CPU with MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which torch
carries for other formats, takes AVX-512 wherever there is some: 1.4 to 2.4 times as fast on an AMD one
(`python benchmarks/matmul.py --threads 1`). The sums are the same in another order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lmopt import native
from lmopt.arch import formulas
from lmopt.arch.numbers import compute_dtype
from lmopt.compute import memory

if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    formulas.counted_by(formulas.linear_flops, "mkldnn::_linear_pointwise")

MIN_WORK = 2**20
"""Multiply-adds below which a call's own cost is more than it gains."""


def mm(a_NK: Tensor, b_KF: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`torch.mm`; for what is computed without gradients, or makes its own."""
    if not _suits(a_NK, b_KF.T):
        return torch.mm(a_NK, b_KF, out=out)
    y_NF = _product(a_NK, b_KF)
    return y_NF if out is None else out.copy_(y_NF)


def linear(x: Tensor, weight_FD: Tensor) -> Tensor:
    """`torch.nn.functional.linear` without bias; differentiable once."""
    if compute_dtype(x) != torch.float32 or not _suits(x, weight_FD):
        return functional.linear(x, weight_FD)
    x_ND = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight_FD.requires_grad):
        y_NF = _Product.apply(_Kept.apply(x_ND, weight_FD), x_ND.detach(), weight_FD.detach())
    else:
        y_NF = _product(x_ND, weight_FD.T)
    return y_NF.view(*x.shape[:-1], len(weight_FD))


class _Kept(torch.autograd.Function):
    """What backward needs of y = x W^T, and a stand-in for y that holds no memory.

    Apart from the product, so that this comes first: where activations are computed again in backward, that ends with
    the last one that is kept, and a product behind it is not made twice.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        return x_ND.new_empty(()).expand(len(x_ND), len(weight_FD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, weight_FD = ctx.saved_tensors
        return (
            mm(grad_NF, weight_FD) if ctx.needs_input_grad[0] else None,
            mm(grad_NF.T, x_ND) if ctx.needs_input_grad[1] else None,
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept_NF: Tensor, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        del ctx, kept_NF
        return _product(x_ND, weight_FD.T)

    @staticmethod
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, None, None]:
        del ctx
        return grad_NF, None, None


def _product(a_NK: Tensor, b_KF: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a_NK, b_KF.T, None, "none", [], "")


def _suits(x: Tensor, weight_FD: Tensor) -> bool:
    """Whether x W^T is a product that oneDNN makes, and makes faster."""
    return (
        x.dtype == weight_FD.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * len(weight_FD) >= MIN_WORK
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.enabled
        and not memory.spares()  # its code for each shape, made at first use, takes memory, too
        and mkl_is_slow()
    )


@functools.cache
def mkl_is_slow() -> bool:
    """Whether torch multiplies float32 with MKL on a processor that has AVX-512 and is not Intel's."""
    offered = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return offered and wide and torch.backends.mkl.is_available() and native.mkl_keeps_to_avx2()
