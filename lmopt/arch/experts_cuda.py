"""What experts compute on a GPU: one grouped product a matrix over all rows (letters: experts.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch import activation, formulas


def grouped_forward(
    x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor, kind: activation.Kind, token_S: Tensor, ends_E: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results, S x D, and what their gradients need: the rows gathered, the inner layer and its activation."""
    x_SD = x_ND.index_select(0, token_S)
    h_SF, inner = activation.activate(kind, grouped_linear(x_SD, up_EGD, ends_E, rows))
    return grouped_linear(h_SF, down_EDF, ends_E, rows), x_SD, inner, h_SF


def grouped_backward(
    grad_ND: Tensor,
    gate_S: Tensor,
    y_SD: Tensor,
    x_SD: Tensor,
    inner: Tensor,
    h_SF: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: activation.Kind,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gathered rows, of their gates, and of both stacks of matrices, these in `weight_dtype`."""
    grad_SD = grad_ND.index_select(0, token_S)
    grad_gate_S = torch.linalg.vecdot(grad_SD, y_SD)
    grad_SD.mul_(gate_S[:, None])
    grad_h_SF = grouped_linear(grad_SD, down_EDF.transpose(1, 2), ends_E, rows)
    grad_down = grouped_outer(grad_SD, h_SF, ends_E, rows).to(weight_dtype)
    grad_inner_SG = activation.activate_backward(kind, grad_h_SF, inner)
    grad_x_SD = grouped_linear(grad_inner_SG, up_EGD.transpose(1, 2), ends_E, rows)
    grad_up = grouped_outer(grad_inner_SG, x_SD, ends_E, rows).to(weight_dtype)
    return grad_x_SD, grad_gate_S, grad_up, grad_down


# --- operators: so that what is counted as FLOPs are the `rows` that belong to an expert, not the spare ones -----


@torch.library.custom_op("lmopt::grouped_linear", mutates_args=())
def grouped_linear(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor, rows: int) -> Tensor:  # noqa: ARG001
    """Rows of each group times its matrix, transposed: S x F. Groups are consecutive and end at `ends_E`.

    Rows beyond the last group hold anything.
    """
    weight_EDF = _filled_up(weight_EFD, 2).transpose(1, 2)
    return functional.grouped_mm(_filled_up(x_SD, 1), weight_EDF, offs=ends_E)[:, : weight_EFD.shape[1]].contiguous()


@grouped_linear.register_fake
def _(x_SD: Tensor, weight_EFD: Tensor, _ends: Tensor, _rows: int) -> Tensor:
    return x_SD.new_empty(len(x_SD), weight_EFD.shape[1])


formulas.counted_by(formulas.grouped_linear_flops, "lmopt::grouped_linear")


@torch.library.custom_op("lmopt::grouped_outer", mutates_args=())
def grouped_outer(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, rows: int) -> Tensor:  # noqa: ARG001
    """grad^T x over the rows of each group: E x F x D; zero for an empty group."""
    out_EFD = functional.grouped_mm(_filled_up(grad_SF, 1).t(), _filled_up(x_SD, 1), offs=ends_E)
    return out_EFD[:, : grad_SF.shape[1], : x_SD.shape[1]].contiguous()


@grouped_outer.register_fake
def _(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, _rows: int) -> Tensor:
    return grad_SF.new_empty(len(ends_E), grad_SF.shape[1], x_SD.shape[1])


formulas.counted_by(formulas.grouped_outer_flops, "lmopt::grouped_outer")


CUDA_ROW_BYTES = 16
"""Rows of a matrix must begin at multiples of it for CUDA's grouped products."""


def _filled_up(x: Tensor, dims: int) -> Tensor:
    """Zeros behind the last `dims` dimensions, up to whole `CUDA_ROW_BYTES`; the same tensor where none are needed."""
    unit = CUDA_ROW_BYTES // x.element_size()
    lacking = [-size % unit for size in reversed(x.shape[-dims:])]
    return functional.pad(x, [zeros for count in lacking for zeros in (0, count)]) if any(lacking) else x
