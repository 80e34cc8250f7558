"""What the chosen experts compute: a plain loop, and products over rows sorted by expert.

A slot is one token at one of its k experts, N x k in all; S rows hold them, one each, or `capacity` an expert, and some
spare ones at the end (other letters: see transformer.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch import activation

ROW_BLOCK = 32
"""Rows of an expert are multiplied as a multiple of this. oneDNN compiles a bfloat16 product anew for each number of
rows, and an expert has another number at every step: without this, most products would wait for a compiler
(docs/techniques/moe.md)."""


def experts_loop(
    x_ND: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kind: str,
    capacity: int | None = None,
) -> Tensor:
    """One expert after the other, on the tokens that chose it: the reference that the grouped kernel must equal."""
    activate = activation.swiglu if kind == "swiglu" else activation.relu2
    y_ND = torch.zeros_like(x_ND)
    for expert in range(len(up_EFD)):
        token, choice = torch.where(expert_NK == expert)
        token, choice = token[:capacity], choice[:capacity]
        h = activate(functional.linear(x_ND[token], up_EFD[expert].to(x_ND.dtype)))
        y = functional.linear(h, down_EDF[expert].to(x_ND.dtype))
        y_ND = y_ND.index_add(0, token, y * gate_NK[token, choice, None].to(y.dtype))
    return y_ND


def experts_grouped(
    x_ND: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kind: str,
    capacity: int | None = None,
) -> Tensor:
    """All experts over rows sorted by expert: gather, two products an expert, one weighted sum a token.

    With a capacity each expert computes that many rows, filled or not, and what does not fit adds nothing.
    """
    experts = len(up_EFD)
    rows = sort_slots(expert_NK, experts) if capacity is None else place_slots(expert_NK, experts, capacity)
    if rows.kept_NK is not None:
        gate_NK = gate_NK * rows.kept_NK
    return _Experts.apply(x_ND, gate_NK.to(x_ND.dtype), up_EFD, down_EDF, kind, *rows)


class _Experts(torch.autograd.Function):
    """Both passes by hand: each row is gathered once a pass, each weight cast once, each gradient made in one piece."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_NK: Tensor,
        up_EFD: Tensor,
        down_EDF: Tensor,
        kind: str,
        token_S: Tensor,
        slot_NK: Tensor,
        ends_E: Tensor,
        kept_NK: Tensor | None,
    ) -> Tensor:
        rows = len(token_S) - ROW_BLOCK
        up, down = up_EFD.to(x_ND.dtype), down_EDF.to(x_ND.dtype)
        x_SD = x_ND.index_select(0, token_S)
        h_SF, inner = activation.activate(kind, grouped_linear(x_SD, up, ends_E, rows))
        y_SD = grouped_linear(h_SF, down, ends_E, rows)
        ctx.save_for_backward(x_SD, inner, h_SF, y_SD, gate_NK, up, down, token_S, slot_NK, ends_E, kept_NK)
        ctx.kind, ctx.weight_dtype = kind, up_EFD.dtype
        return functional.embedding_bag(slot_NK, y_SD, mode="sum", per_sample_weights=gate_NK)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, inner, h_SF, y_SD, gate_NK, up, down, token_S, slot_NK, ends_E, kept_NK = ctx.saved_tensors
        slot, rows = slot_NK.flatten(), len(token_S) - ROW_BLOCK
        # added, since dropped slots (gate 0) all name row 0; rows that no slot names have gate 0, and so no gradient
        gate_S = y_SD.new_zeros(len(y_SD)).scatter_add_(0, slot, gate_NK.flatten())
        grad_SD = grad_ND.index_select(0, token_S)
        grad_gate_NK = torch.linalg.vecdot(grad_SD, y_SD).index_select(0, slot).view_as(gate_NK)
        grad_SD.mul_(gate_S[:, None])
        grad_h_SF = grouped_linear(grad_SD, down.transpose(1, 2), ends_E, rows)
        grad_down = grouped_outer(grad_SD, h_SF, ends_E, rows).to(ctx.weight_dtype)
        grad_inner_SF = activation.activate_backward(ctx.kind, grad_h_SF, inner)
        grad_x_SD = grouped_linear(grad_inner_SF, up.transpose(1, 2), ends_E, rows)
        grad_up = grouped_outer(grad_inner_SF, x_SD, ends_E, rows).to(ctx.weight_dtype)
        weight_NK = None if kept_NK is None else kept_NK.to(grad_x_SD.dtype)
        grad_x_ND = functional.embedding_bag(slot_NK, grad_x_SD, mode="sum", per_sample_weights=weight_NK)
        return grad_x_ND, grad_gate_NK, grad_up, grad_down, *[None] * 5


# --- which row holds which slot ------------------------------------------------------------------


class Rows(NamedTuple):
    """Slots in the order in which experts compute them, one expert's after the other's, then `ROW_BLOCK` spare rows."""

    token_S: Tensor
    """The token of each row; 0 where it holds no slot."""
    slot_NK: Tensor
    """The row of each slot; 0 for one that was dropped."""
    ends_E: Tensor
    """Where each expert's rows end, int32."""
    kept_NK: Tensor | None
    """Which slots have a row; None where all have."""


def sort_slots(expert_NK: Tensor, experts: int) -> Rows:
    """A row a slot."""
    chosen, order = expert_NK.flatten().sort(stable=True)
    slot = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends_E = torch.searchsorted(chosen, torch.arange(experts, device=order.device), right=True, out_int32=True)
    token_S = functional.pad(order // expert_NK.shape[1], (0, ROW_BLOCK))
    return Rows(token_S, slot.view_as(expert_NK), ends_E, None)


def place_slots(expert_NK: Tensor, experts: int, capacity: int) -> Rows:
    """`capacity` rows an expert, filled by the first slots in the order of the tokens.

    A row that stays empty computes token 0 for nobody.
    """
    chosen, order = expert_NK.flatten().sort(stable=True)
    starts_E = torch.searchsorted(chosen, torch.arange(experts, device=chosen.device))
    place = torch.arange(len(chosen), device=chosen.device) - starts_E[chosen]
    kept = place < capacity
    beyond = experts * capacity
    row = torch.where(kept, chosen * capacity + place, beyond)
    token_S = row.new_zeros(beyond + ROW_BLOCK).scatter_(0, row, order // expert_NK.shape[1])
    token_S[beyond] = 0
    slot = torch.empty_like(row).scatter_(0, order, torch.where(kept, row, 0))
    ends_E = torch.arange(capacity, beyond + 1, capacity, dtype=torch.int32, device=row.device)
    kept_NK = torch.empty_like(kept).scatter_(0, order, kept).view_as(expert_NK)
    return Rows(token_S, slot.view_as(expert_NK), ends_E, kept_NK)


# --- operators: opaque to tracing, so that rows an expert (data) never become shapes -------------
# `rows` are those that belong to an expert, S without the spare ones: what is counted as FLOPs.


@torch.library.custom_op("lmopt::grouped_linear", mutates_args=())
def grouped_linear(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor, rows: int) -> Tensor:  # noqa: ARG001
    """Rows of each group times its matrix, transposed: S x F. Groups are consecutive and end at `ends_E`.

    Rows beyond the last group hold anything.
    """
    if x_SD.is_cuda:
        weight_EDF = _filled_up(weight_EFD, 2).transpose(1, 2)
        return functional.grouped_mm(_filled_up(x_SD, 1), weight_EDF, offs=ends_E)[
            :, : weight_EFD.shape[1]
        ].contiguous()
    out_SF = x_SD.new_empty(len(x_SD), weight_EFD.shape[1])
    weight_DF = weight_EFD.transpose(1, 2).unbind()
    for group, start, end in _groups(ends_E):
        stop = _rounded(start, end)  # rows past the end are the next group's, which writes its own product over them
        torch.mm(x_SD[start:stop], weight_DF[group], out=out_SF[start:stop])
    return out_SF


@grouped_linear.register_fake
def _(x_SD: Tensor, weight_EFD: Tensor, _ends: Tensor, _rows: int) -> Tensor:
    return x_SD.new_empty(len(x_SD), weight_EFD.shape[1])


@torch.library.custom_op("lmopt::grouped_outer", mutates_args=("grad_SF",))
def grouped_outer(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, rows: int) -> Tensor:  # noqa: ARG001
    """grad^T x over the rows of each group: E x F x D; zero for an empty group. `grad_SF` is used up."""
    if grad_SF.is_cuda:
        out_EFD = functional.grouped_mm(_filled_up(grad_SF, 1).t(), _filled_up(x_SD, 1), offs=ends_E)
        return out_EFD[:, : grad_SF.shape[1], : x_SD.shape[1]].contiguous()
    out_EFD = grad_SF.new_empty(len(ends_E), grad_SF.shape[1], x_SD.shape[1])
    out_FD = out_EFD.unbind()
    for group, start, end in reversed(list(_groups(ends_E))):
        stop = _rounded(start, end)
        grad_SF[end:stop].zero_()  # rows of later groups, which have been summed already
        torch.mm(grad_SF[start:stop].t(), x_SD[start:stop], out=out_FD[group])
    return out_EFD


@grouped_outer.register_fake
def _(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, _rows: int) -> Tensor:
    return grad_SF.new_empty(len(ends_E), grad_SF.shape[1], x_SD.shape[1])


CUDA_ROW_BYTES = 16
"""Rows of a matrix must begin at multiples of it for CUDA's grouped products."""


def _filled_up(x: Tensor, dims: int) -> Tensor:
    """Zeros behind the last `dims` dimensions, up to whole `CUDA_ROW_BYTES`; the same tensor where none are needed."""
    unit = CUDA_ROW_BYTES // x.element_size()
    lacking = [-size % unit for size in reversed(x.shape[-dims:])]
    return functional.pad(x, [zeros for count in lacking for zeros in (0, count)]) if any(lacking) else x


def _groups(ends_E: Tensor) -> Iterator[tuple[int, int, int]]:
    """(group, start, end) of each group."""
    start = 0
    for group, end in enumerate(ends_E.tolist()):
        yield group, start, end
        start = end


def _rounded(start: int, end: int) -> int:
    """The end of a group's rows in whole blocks."""
    return start - (start - end) // ROW_BLOCK * ROW_BLOCK
