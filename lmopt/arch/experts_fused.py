"""What experts compute on a CPU in bfloat16 while they train, by a kernel of our own in C++ (experts_fused.cpp).

It takes an expert's weights and the tokens as they are: what `experts_cpu` and its callers ask torch for one by one -
rows gathered, weights cast, products, activations, gates, sums of a token's rows, gradients cast back - happens on the
way of a tile through the cache.

Letters: experts.py; P parts of the inner layer, G = P x F.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmopt.arch import formulas, fused

Slots = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
"""token_S, ends_E, slot_NK, kept_NK and gates."""


def suits(x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor) -> bool:
    """Whether the kernel is there and made for such tensors, of a training."""
    weights = up_EGD.dtype == down_EDF.dtype and up_EGD.dtype in (torch.float32, torch.bfloat16)
    widths = x_ND.shape[1], down_EDF.shape[2]
    made_for = fused.unsuited(fused.EXPERT_FORMATS, x_ND.dtype, x_ND.device, *widths) is None
    return torch.is_grad_enabled() and weights and made_for


class FusedExperts(torch.autograd.Function):
    """Each token's weighted sum of what its experts compute; of what they compute gate and up alone are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_NK: Tensor,
        up_EGD: Tensor,
        down_EDF: Tensor,
        kind: str,
        token_S: Tensor,
        ends_E: Tensor,
        slot_NK: Tensor,
        kept_NK: Tensor | None,
    ) -> Tensor:
        where, slots = (kind, token_S, ends_E, len(token_S)), (gate_NK.float(), slot_NK, kept_NK)
        y_ND, inner_SG = fused_forward(x_ND, up_EGD, down_EDF, *where, *slots)
        ctx.save_for_backward(x_ND, inner_SG, up_EGD, down_EDF, token_S, ends_E, *slots)
        ctx.kind, ctx.gates = kind, gate_NK.dtype
        return y_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        *kept, token_S, ends_E, gate_NK, slot_NK, kept_NK = ctx.saved_tensors
        where, slots = (ctx.kind, token_S, ends_E, len(token_S)), (gate_NK, slot_NK, kept_NK)
        grad_x, grad_gate, grad_up, grad_down = fused_backward(grad_ND, *kept, *where, *slots)
        return grad_x, grad_gate.to(ctx.gates), grad_up, grad_down, *[None] * 5


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
    gate_NK: Tensor,
    slot_NK: Tensor,
    kept_NK: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The tokens' results, N x D, and for their gradients the inner layer, S x G, in an order of the kernel's own."""
    x_ND, up_EGD, down_EDF, gate_NK = (each.contiguous() for each in (x_ND, up_EGD, down_EDF, gate_NK))
    y_ND, inner_SG = made = _made(x_ND, up_EGD, token_S)
    slots = token_S, ends_E, slot_NK, kept_NK, gate_NK
    rows_y_SD = x_ND.new_empty(len(token_S), x_ND.shape[1])
    _call("forward", kind, slots, up_EGD, down_EDF, x_ND, up_EGD, down_EDF, rows_y_SD, inner_SG, y_ND)
    return made


@fused_forward.register_fake
def _(x_ND: Tensor, up_EGD: Tensor, _down: Tensor, _kind: str, token_S: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _made(x_ND, up_EGD, token_S)


formulas.counted_by(formulas.experts_flops, "lmopt::experts_fused_forward")


def _made(x_ND: Tensor, up_EGD: Tensor, token_S: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_ND, memory_format=torch.contiguous_format), x_ND.new_empty(len(token_S), up_EGD.shape[1])


@torch.library.custom_op("lmopt::experts_fused_backward", mutates_args=())
def fused_backward(
    grad_ND: Tensor,
    x_ND: Tensor,
    inner_SG: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    kind: str,
    token_S: Tensor,
    ends_E: Tensor,
    rows: int,  # noqa: ARG001
    gate_NK: Tensor,
    slot_NK: Tensor,
    kept_NK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the tokens, of their gates (float32), and of both stacks of matrices, in the type of these."""
    grad_ND, x_ND, up_EGD, down_EDF = (each.contiguous() for each in (grad_ND, x_ND, up_EGD, down_EDF))
    gate_NK = gate_NK.contiguous()
    made = _gradients(gate_NK, x_ND, up_EGD, down_EDF)
    slots = token_S, ends_E, slot_NK, kept_NK, gate_NK
    rows_grad_SD = x_ND.new_empty(len(token_S), x_ND.shape[1])
    _call("backward", kind, slots, up_EGD, down_EDF, grad_ND, x_ND, inner_SG, up_EGD, down_EDF, rows_grad_SD, *made)
    return made


@fused_backward.register_fake
def _(
    _grad: Tensor,
    x_ND: Tensor,
    _inner: Tensor,
    up_EGD: Tensor,
    down_EDF: Tensor,
    _kind: str,
    _token: Tensor,
    _ends: Tensor,
    _rows: int,
    gate_NK: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(gate_NK, x_ND, up_EGD, down_EDF)


formulas.counted_by(formulas.experts_fused_backward_flops, "lmopt::experts_fused_backward")


def _gradients(
    gate_NK: Tensor, x_ND: Tensor, up_EGD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands = x_ND, gate_NK, up_EGD, down_EDF
    grad_x, grad_gate, grad_up, grad_down = (
        torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in operands
    )
    return grad_x, grad_gate, grad_up, grad_down


def _call(name: str, kind: str, slots: Slots, up_EGD: Tensor, down_EDF: Tensor, *operands: Tensor) -> None:
    token_S, _, slot_NK, *_ = slots
    experts, width, hidden = down_EDF.shape
    sizes = *slot_NK.shape, width, hidden, experts, len(token_S), torch.get_num_threads()
    if not fused.call(f"experts_{name}", kind == "swiglu", up_EGD.dtype == torch.float32, *sizes, *slots, *operands):
        raise MemoryError(f"not enough memory for the {name} pass of {experts} experts ({len(token_S)} rows)")


# --- which row holds which slot ------------------------------------------------------------------


def rows_of(expert_NK: Tensor, experts: int, capacity: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The token of each row, where each expert's rows end, the row of each slot, and which slots have one, if not all.

    As `experts.sort_slots` and `place_slots` have it, without spare rows.
    """
    token_S, ends_E, slot_NK, kept_NK = placed(expert_NK, experts, -1 if capacity is None else capacity)
    return token_S, ends_E, slot_NK, None if capacity is None else kept_NK


@torch.library.custom_op("lmopt::place_slots", mutates_args=())
def placed(expert_NK: Tensor, experts: int, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as an operator: a capacity of -1 is none, and what is returned last is empty then."""
    expert_NK = expert_NK.contiguous().long()
    made, next_E = _rows(expert_NK, experts, capacity), expert_NK.new_empty(experts)
    token_S, ends_E, slot_NK, kept_NK = made
    if not fused.call(
        "place_slots", *expert_NK.shape, experts, capacity, expert_NK, token_S, slot_NK, ends_E, kept_NK, next_E
    ):
        raise IndexError(f"experts are 0 to {experts - 1}, tokens go to {expert_NK.min()} to {expert_NK.max()}")
    return made


@placed.register_fake
def _rows(expert_NK: Tensor, experts: int, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, kept = (expert_NK.numel(), 0) if capacity < 0 else (experts * capacity, expert_NK.numel())
    token_S, slot_NK = (expert_NK.new_empty(shape, dtype=torch.int64) for shape in ((rows,), expert_NK.shape))
    kept_NK = expert_NK.new_empty(expert_NK.shape if kept else 0, dtype=torch.bool)
    return token_S, expert_NK.new_empty(experts, dtype=torch.int32), slot_NK, kept_NK
