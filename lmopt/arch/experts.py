"""What the chosen experts compute: a plain loop, and grouped products over slots sorted by expert.

A slot is one token at one of its k experts, N x k in all; S rows hold them, one each or more where experts have a
capacity (other letters: see transformer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ROW_BLOCK = 32
"""Rows of an expert are multiplied as a multiple of this. oneDNN compiles a bfloat16 product anew for each number of
rows, and an expert has another number at every step: without this, most products would wait for a compiler
(docs/techniques/moe.md)."""

Activation = Callable[[Tensor], Tensor]


def experts_loop(
    x_ND: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: Activation,
    capacity: int | None = None,
) -> Tensor:
    """One expert after the other, on the tokens that chose it: the reference that the grouped kernel must equal."""
    y_ND = torch.zeros_like(x_ND)
    for expert in range(len(up_EFD)):
        token, choice = torch.where(expert_NK == expert)
        token, choice = token[:capacity], choice[:capacity]
        h = activation(functional.linear(x_ND[token], up_EFD[expert].to(x_ND.dtype)))
        y = functional.linear(h, down_EDF[expert].to(x_ND.dtype))
        y_ND = y_ND.index_add(0, token, y * gate_NK[token, choice, None].to(y.dtype))
    return y_ND


def experts_grouped(
    x_ND: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    activation: Activation,
    capacity: int | None = None,
) -> Tensor:
    """All experts over rows sorted by expert: gather, two grouped products, one weighted sum a token.

    With a capacity each expert computes that many rows, filled or not, and what does not fit adds nothing.
    """
    if capacity is None:
        rows = sort_slots(expert_NK, len(up_EFD))
    else:
        rows = place_slots(expert_NK, len(up_EFD), capacity)
        assert rows.kept_NK is not None
        gate_NK = gate_NK * rows.kept_NK
    x_SD = _Dispatch.apply(x_ND, rows.token_S, rows.slot_NK, rows.kept_NK)
    h_SF = activation(_GroupedLinear.apply(x_SD, up_EFD, rows.ends_E))
    y_SD = _GroupedLinear.apply(h_SF, down_EDF, rows.ends_E)
    return _Combine.apply(y_SD, gate_NK.to(y_SD.dtype), rows.token_S, rows.slot_NK)


# --- which row holds which slot ------------------------------------------------------------------


class Rows(NamedTuple):
    """Slots in the order in which experts compute them, one expert's after the other's."""

    token_S: Tensor
    """The token of each row."""
    slot_NK: Tensor
    """The row of each slot; 0 for one that was dropped."""
    ends_E: Tensor
    """Where each expert's rows end, int32."""
    kept_NK: Tensor | None
    """Which slots have a row; None where all have."""


def sort_slots(expert_NK: Tensor, experts: int) -> Rows:
    """A row a slot."""
    expert_S, order_S = expert_NK.flatten().sort(stable=True)
    slot_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    expert_E = torch.arange(experts, device=expert_S.device)
    ends_E = torch.searchsorted(expert_S, expert_E, right=True, out_int32=True)
    return Rows(order_S // expert_NK.shape[1], slot_S.view_as(expert_NK), ends_E, None)


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
    token_S = row.new_zeros(beyond + 1).scatter_(0, row, order // expert_NK.shape[1])[:-1]
    slot = torch.empty_like(row).scatter_(0, order, torch.where(kept, row, 0))
    ends_E = torch.arange(capacity, beyond + 1, capacity, dtype=torch.int32, device=row.device)
    kept_NK = torch.empty_like(kept).scatter_(0, order, kept).view_as(expert_NK)
    return Rows(token_S, slot.view_as(expert_NK), ends_E, kept_NK)


class _Dispatch(torch.autograd.Function):
    """Tokens in row order. Backward sums a token's rows in one pass, where index_add would scatter them."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_S: Tensor, slot_NK: Tensor, kept_NK: Tensor | None) -> Tensor:
        ctx.save_for_backward(slot_NK, kept_NK)
        return x_ND.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None, None, None]:
        slot_NK, kept_NK = ctx.saved_tensors
        weight_NK = None if kept_NK is None else kept_NK.to(grad_SD.dtype)
        return functional.embedding_bag(slot_NK, grad_SD, mode="sum", per_sample_weights=weight_NK), None, None, None


class _Combine(torch.autograd.Function):
    """Each token's sum of its slots' rows, weighted by their gates (0 for a slot that was dropped)."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, gate_NK: Tensor, token_S: Tensor, slot_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_SD, gate_NK, token_S, slot_NK)
        return functional.embedding_bag(slot_NK, y_SD, mode="sum", per_sample_weights=gate_NK)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_SD, gate_NK, token_S, slot_NK = ctx.saved_tensors
        grad_SD = grad_ND.index_select(0, token_S)
        grad_gate_S = torch.linalg.vecdot(grad_SD, y_SD)
        slot_S = slot_NK.flatten()
        # added, since dropped slots (gate 0) all name row 0; a row that no slot names has gate 0
        gate_S = y_SD.new_zeros(len(y_SD)).scatter_add_(0, slot_S, gate_NK.flatten())
        grad_gate_NK = grad_gate_S.index_select(0, slot_S).view_as(gate_NK)
        return grad_SD.mul_(gate_S[:, None]), grad_gate_NK, None, None


class _GroupedLinear(torch.autograd.Function):
    """x W_e^T for the rows of each expert e. Weights are cast here, so that their gradient is made in one piece."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
        weight = weight_EFD.to(x_SD.dtype)
        ctx.save_for_backward(x_SD, weight, ends_E)
        ctx.weight_dtype = weight_EFD.dtype
        return grouped_linear(x_SD, weight, ends_E)

    @staticmethod
    def backward(ctx: Any, grad_SF: Tensor) -> tuple[Tensor, Tensor, None]:
        x_SD, weight_EFD, ends_E = ctx.saved_tensors
        grad_SF = grad_SF.contiguous()  # the gradient of a sum arrives expanded, which a grouped product refuses
        grad_x_SD = grouped_linear(grad_SF, weight_EFD.transpose(1, 2), ends_E)
        return grad_x_SD, grouped_outer(grad_SF, x_SD, ends_E, ctx.weight_dtype), None


# --- operators: opaque to tracing, so that rows an expert (data) never become shapes -------------


@torch.library.custom_op("lmopt::grouped_linear", mutates_args=())
def grouped_linear(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """Rows of each group times its matrix, transposed: S x F. Groups are consecutive and end at `ends_E`."""
    if x_SD.is_cuda:
        return functional.grouped_mm(x_SD, weight_EFD.transpose(1, 2), offs=ends_E)
    out_SF = x_SD.new_empty(len(x_SD), weight_EFD.shape[1])
    weight_DF = weight_EFD.transpose(1, 2).unbind()
    for group, start, end in _groups(ends_E):
        rounded = start - (start - end) // ROW_BLOCK * ROW_BLOCK
        # rows past the end are the next group's, which overwrites them with its own product; the last has no next
        stops = (rounded,) if rounded <= len(x_SD) else (rounded - ROW_BLOCK, end)
        for stop in stops:
            torch.mm(x_SD[start:stop], weight_DF[group], out=out_SF[start:stop])
            start = stop
    return out_SF


@grouped_linear.register_fake
def _(x_SD: Tensor, weight_EFD: Tensor, _ends: Tensor) -> Tensor:
    return x_SD.new_empty(len(x_SD), weight_EFD.shape[1])


@torch.library.custom_op("lmopt::grouped_outer", mutates_args=())
def grouped_outer(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, dtype: torch.dtype) -> Tensor:
    """grad^T x over the rows of each group: E x F x D, summed and returned in `dtype`; zero for an empty group."""
    if grad_SF.is_cuda:
        return functional.grouped_mm(grad_SF.t(), x_SD, offs=ends_E).to(dtype)
    out_EFD = _rests(grad_SF, x_SD, ends_E).to(dtype)
    out_FD = out_EFD.unbind()
    for group, start, end in _groups(ends_E):
        stop = end - (end - start) % ROW_BLOCK
        if stop > start:
            out_FD[group].add_(torch.mm(grad_SF[start:stop].t(), x_SD[start:stop]))
    return out_EFD


@grouped_outer.register_fake
def _(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor, dtype: torch.dtype) -> Tensor:
    return grad_SF.new_empty(len(ends_E), grad_SF.shape[1], x_SD.shape[1], dtype=dtype)


def _groups(ends_E: Tensor) -> Iterator[tuple[int, int, int]]:
    """(group, start, end) of each group that has rows."""
    start = 0
    for group, end in enumerate(ends_E.tolist()):
        if end > start:
            yield group, start, end
        start = end


def _rests(grad_SF: Tensor, x_SD: Tensor, ends_E: Tensor) -> Tensor:
    """grad^T x over the rows of each group that do not fill a block, in one batched product: E x F x D."""
    sizes_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    place_R = torch.arange(ROW_BLOCK, device=ends_E.device)
    rest_E1 = (sizes_E % ROW_BLOCK)[:, None]
    row_ER = (ends_E[:, None] - rest_E1 + place_R).clamp_(max=len(x_SD) - 1)
    grad_ERF = grad_SF[row_ER].mul_((place_R < rest_E1)[..., None])
    return torch.bmm(grad_ERF.transpose(1, 2), x_SD[row_ER])
