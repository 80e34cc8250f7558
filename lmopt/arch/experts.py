"""What the chosen experts compute: a plain loop, and products over rows sorted by expert.

A slot is one token at one of its k experts, N x k in all; S rows hold them, one each, or `capacity` an expert, and some
spare ones at the end (other letters: see transformer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch import activation
from lmopt.arch.experts_cpu import ROW_BLOCK, experts_backward, experts_forward
from lmopt.arch.experts_cuda import grouped_backward, grouped_forward
from lmopt.arch.experts_fused import FusedExperts, rows_of, suits


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


def experts_auto(
    x_ND: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    kind: str,
    capacity: int | None = None,
) -> Tensor:
    """The fused kernel where there is one for these tensors, the grouped products elsewhere."""
    if not suits(x_ND, up_EFD, down_EDF):
        return experts_grouped(x_ND, gate_NK, expert_NK, up_EFD, down_EDF, kind, capacity)
    return FusedExperts.apply(x_ND, gate_NK, up_EFD, down_EDF, kind, *rows_of(expert_NK, len(up_EFD), capacity))


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
    passes = _CUDA if x_ND.is_cuda else _CPU
    return _Experts.apply(passes, x_ND, gate_NK.to(x_ND.dtype), up_EFD, down_EDF, kind, *rows)


class _Passes(NamedTuple):
    """Two operators, which take and return the same on every device but for what the first keeps for the second."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


_CPU, _CUDA = _Passes(experts_forward, experts_backward), _Passes(grouped_forward, grouped_backward)


class _Experts(torch.autograd.Function):
    """Both passes by hand: each row is gathered once a pass, each weight cast once, each gradient made in one piece."""

    @staticmethod
    def forward(
        ctx: Any,
        passes: _Passes,
        x_ND: Tensor,
        gate_NK: Tensor,
        up_EGD: Tensor,
        down_EDF: Tensor,
        kind: str,
        token_S: Tensor,
        slot_NK: Tensor,
        ends_E: Tensor,
        kept_NK: Tensor | None,
    ) -> Tensor:
        up, down = up_EGD.to(x_ND.dtype), down_EDF.to(x_ND.dtype)
        y_SD, *kept = passes.forward(x_ND, up, down, kind, token_S, ends_E, len(token_S) - ROW_BLOCK)
        ctx.save_for_backward(y_SD, *kept, up, down, gate_NK, token_S, slot_NK, ends_E, kept_NK)
        ctx.passes, ctx.kind, ctx.dtype = passes, kind, up_EGD.dtype
        return functional.embedding_bag(slot_NK, y_SD, mode="sum", per_sample_weights=gate_NK)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        *kept, gate_NK, token_S, slot_NK, ends_E, kept_NK = ctx.saved_tensors
        slot, rows = slot_NK.flatten(), len(token_S) - ROW_BLOCK
        # added, since dropped slots (gate 0) all name row 0; rows that no slot names have gate 0, and so no gradient
        gate_S = gate_NK.new_zeros(len(token_S)).scatter_add_(0, slot, gate_NK.flatten())
        grad_x_SD, grad_gate_S, grad_up, grad_down = ctx.passes.backward(
            grad_ND, gate_S, *kept, ctx.kind, token_S, ends_E, rows, ctx.dtype
        )
        grad_gate_NK = grad_gate_S.index_select(0, slot).view_as(gate_NK).to(gate_NK.dtype)
        weight_NK = None if kept_NK is None else kept_NK.to(grad_x_SD.dtype)
        grad_x_ND = functional.embedding_bag(slot_NK, grad_x_SD, mode="sum", per_sample_weights=weight_NK)
        return None, grad_x_ND, grad_gate_NK, grad_up, grad_down, *[None] * 5


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
