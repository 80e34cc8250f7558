"""What experts compute on a CPU: one expert after the other, so that a step finds in the cache what the last one wrote.

Letters: experts.py. R rows of one expert, in whole blocks; P parts of the inner layer (gate and up, or one matrix),
G = P x F columns where they stand side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmopt.arch import activation, formulas

ROW_BLOCK = 32
"""Rows of an expert are multiplied as a multiple of this. oneDNN compiles a bfloat16 product anew for each number of
rows, and an expert has another number at every step: without this, most products would wait for a compiler
(docs/techniques/moe.md)."""

# Operators: opaque to tracing, so that rows an expert (data) never become shapes. `rows` are those that belong to an
# expert, S without the spare ones: what is counted as FLOPs. Rows that belong to none hold anything.


@torch.library.custom_op("lmopt::experts_forward", mutates_args=())
def experts_forward(
    x_ND: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: str,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Results, S x D, and what their gradients need.

    That is the rows gathered, S x D; their inner layer, P x S x F; and what `activation.activate_parts` keeps, S x F.
    """
    y_SD, x_SD, inner_PSF, kept_SF = made = _made(x_ND, up_EGD, down_EDF, token_S)
    groups = _groups(ends_E)
    scratch = _scratch(x_ND, groups, up_EGD.shape[1], down_EDF.shape[2])
    for expert, (own, count, _) in enumerate(groups):
        inner_RG, spare_RF = (each[:count] for each in scratch)
        torch.index_select(x_ND, 0, token_S[own], out=x_SD[own])
        torch.mm(x_SD[own], up_EGD[expert].t(), out=inner_RG)
        inner_PRF = inner_PSF[:, own].copy_(_parts(inner_RG, len(inner_PSF)))  # apart: read in one piece in backward
        h_RF = activation.activate_parts(kind, inner_PRF, kept_SF[own], spare_RF)
        torch.mm(h_RF, down_EDF[expert].t(), out=y_SD[own])
    return made


@experts_forward.register_fake
def _(
    x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor, _kind: str, token_S: Tensor, _ends: Tensor, _rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _made(x_ND, up_EGD, down_EDF, token_S)


formulas.counted_by(formulas.experts_flops, "lmopt::experts_forward")


def _made(x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor, token_S: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width, hidden = len(token_S), x_ND.shape[1], down_EDF.shape[2]
    inner_PSF = x_ND.new_empty(up_EGD.shape[1] // hidden, rows, hidden)
    return x_ND.new_empty(rows, width), x_ND.new_empty(rows, width), inner_PSF, x_ND.new_empty(rows, hidden)


@torch.library.custom_op("lmopt::experts_backward", mutates_args=())
def experts_backward(
    grad_ND: Tensor,
    gate_S: Tensor,
    y_SD: Tensor,
    x_SD: Tensor,
    inner_PSF: Tensor,
    kept_SF: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: str,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,  # noqa: ARG001
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gathered rows, of their gates, and of both stacks of matrices, these in `weight_dtype`."""
    grad_x_SD, grad_gate_S, grad_up, grad_down = made = _gradients(gate_S, x_SD, up_EGD, down_EDF, weight_dtype)
    width, (parts, _, hidden) = x_SD.shape[1], inner_PSF.shape
    groups = _groups(ends_E)
    scratch = _scratch(x_SD, groups, width, hidden, hidden, parts * hidden)
    grad_up_GD, grad_down_DF = torch.empty_like(up_EGD[0]), torch.empty_like(down_EDF[0])
    for expert, (own, count, filled) in enumerate(groups):
        grad_RD, grad_RF, spare_RF, grad_RG = (each[:count] for each in scratch)
        torch.index_select(grad_ND, 0, token_S[own], out=grad_RD)
        grad_RD[filled:].zero_()  # and so all that follows from it: rows past the end add to no matrix
        grad_gate_S[own] = torch.linalg.vecdot(grad_RD, y_SD[own])
        grad_RD.mul_(gate_S[own, None])
        inner_PRF, kept_RF = inner_PSF[:, own], kept_SF[own]
        h_RF = activation.activated_parts(kind, inner_PRF, kept_RF, spare_RF)
        grad_down[expert] = torch.mm(grad_RD.t(), h_RF, out=grad_down_DF)
        torch.mm(grad_RD, down_EDF[expert], out=grad_RF)
        activation.parts_backward(kind, grad_RF, inner_PRF, kept_RF, _parts(grad_RG, parts))
        torch.mm(grad_RG, up_EGD[expert], out=grad_x_SD[own])
        grad_up[expert] = torch.mm(grad_RG.t(), x_SD[own], out=grad_up_GD)
    return made


@experts_backward.register_fake
def _(
    _grad: Tensor,
    gate_S: Tensor,
    _y: Tensor,
    x_SD: Tensor,
    _inner: Tensor,
    _kept: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    _kind: str,
    _token: Tensor,
    _ends: Tensor,
    _rows: int,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(gate_S, x_SD, up_EGD, down_EDF, weight_dtype)


formulas.counted_by(formulas.experts_backward_flops, "lmopt::experts_backward")


def _gradients(
    gate_S: Tensor, x_SD: Tensor, up_EGD: Tensor, down_EDF: Tensor, weight_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_up, grad_down = (torch.empty_like(each, dtype=weight_dtype) for each in (up_EGD, down_EDF))
    return torch.empty_like(x_SD), torch.empty_like(gate_S), grad_up, grad_down


class _Group(NamedTuple):
    """The rows of one expert and, up to a whole block, those behind them.

    These are the next expert's or spare ones. What is written there is written over: experts come in order.
    """

    own: slice
    count: int
    """Rows of the slice."""
    filled: int
    """How many of them, the first, are the expert's."""


def _groups(ends_E: Tensor) -> list[_Group]:
    groups, start = [], 0
    for end in ends_E.tolist():
        count = -(-(end - start) // ROW_BLOCK) * ROW_BLOCK
        groups.append(_Group(slice(start, start + count), count, end - start))
        start = end
    return groups


def _scratch(like: Tensor, groups: list[_Group], *widths: int) -> list[Tensor]:
    """Room for the largest group, used again by each: it stays in the cache."""
    most = max(group.count for group in groups)
    return [like.new_empty(most, width) for width in widths]


def _parts(inner_RG: Tensor, count: int) -> Tensor:
    """The parts that stand side by side, as a view P x R x F."""
    return inner_RG.unflatten(1, (count, -1)).movedim(1, 0)
