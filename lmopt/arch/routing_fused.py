"""What a router does on a CPU while bfloat16 trains, by a kernel of our own in C++ (routing_fused.cpp).

A token's scores are a few numbers: torch starts dozens of operations on them, one after the other, each of which takes
longer to start than to run.

Letters: routing.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmopt.arch import formulas, fused
from lmopt.arch.numbers import compute_dtype

FORMATS = (torch.float32, torch.bfloat16)


def suits(x_ND: Tensor, weight_ED: Tensor, hidden: int) -> bool:
    """Whether the kernel is there and made for such tensors, of a training.

    `hidden`, the experts' inner width, is no matter to this kernel: it routes for experts that have theirs.
    """
    formats = x_ND.dtype in FORMATS and weight_ED.dtype == torch.float32
    made_for = fused.unsuited(fused.EXPERT_FORMATS, compute_dtype(x_ND), x_ND.device, x_ND.shape[1], hidden) is None
    return torch.is_grad_enabled() and formats and made_for


class Route(torch.autograd.Function):
    """Scores, gates, experts and the losses with their weights, of `DroplessRouter`; scores have no gradient here."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_ED: Tensor, top_k: int, sum_to_one: bool, balance: float, z: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        made = route_forward(x_ND, weight_ED, top_k, sum_to_one, balance, z)
        logits_NE, gate_NK, expert_NK, loss, _, _ = made
        ctx.save_for_backward(x_ND, weight_ED, *made)
        ctx.sum_to_one, ctx.z = sum_to_one, z
        ctx.mark_non_differentiable(logits_NE, expert_NK)
        return logits_NE, gate_NK, expert_NK, loss

    @staticmethod
    def backward(ctx: Any, _: Any, grad_NK: Tensor, __: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_ED, logits_NE, gate_NK, expert_NK, _, log_sum_N, pull_E = ctx.saved_tensors
        scored = x_ND, weight_ED, logits_NE, gate_NK, expert_NK, log_sum_N, pull_E
        return *route_backward(*scored, grad_NK, grad_loss, ctx.sum_to_one, ctx.z), *[None] * 4


@torch.library.custom_op("lmopt::route_forward", mutates_args=())
def route_forward(
    x_ND: Tensor, weight_ED: Tensor, top_k: int, sum_to_one: bool, balance: float, z: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, gates, experts, the loss; for gradients each token's logsumexp and what the loss asks of each expert."""
    x_ND, weight_ED = x_ND.contiguous(), weight_ED.contiguous()
    made = _choice(x_ND, weight_ED, top_k)
    fused.run("route_forward", *_sizes(x_ND, weight_ED, top_k, sum_to_one), balance, z, x_ND, weight_ED, *made)
    return made


@route_forward.register_fake
def _(x_ND: Tensor, weight_ED: Tensor, top_k: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _choice(x_ND, weight_ED, top_k)


formulas.counted_by(formulas.product_transposed_flops, "lmopt::route_forward")


def _choice(x_ND: Tensor, weight_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, experts = len(x_ND), len(weight_ED)
    expert_NK = weight_ED.new_empty(tokens, top_k, dtype=torch.int64)
    loss, log_sum_N, pull_E = weight_ED.new_empty(()), weight_ED.new_empty(tokens), weight_ED.new_empty(experts)
    logits_NE, gate_NK = weight_ED.new_empty(tokens, experts), weight_ED.new_empty(tokens, top_k)
    return logits_NE, gate_NK, expert_NK, loss, log_sum_N, pull_E


@torch.library.custom_op("lmopt::route_backward", mutates_args=())
def route_backward(
    x_ND: Tensor,
    weight_ED: Tensor,
    logits_NE: Tensor,
    gate_NK: Tensor,
    expert_NK: Tensor,
    log_sum_N: Tensor,
    pull_E: Tensor,
    grad_NK: Tensor,
    grad_loss: Tensor,
    sum_to_one: bool,
    z: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens, in their type, and of the router's weight."""
    x_ND, weight_ED, grad_NK = x_ND.contiguous(), weight_ED.contiguous(), grad_NK.contiguous()
    made = torch.empty_like(x_ND), torch.empty_like(weight_ED)
    scored = x_ND, weight_ED, logits_NE, gate_NK, expert_NK, log_sum_N, pull_E, grad_NK, grad_loss
    sizes = _sizes(x_ND, weight_ED, gate_NK.shape[1], sum_to_one)
    fused.run("route_backward", *sizes, z, *scored, *made)
    return made


@route_backward.register_fake
def _(x_ND: Tensor, weight_ED: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    empty = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (x_ND, weight_ED))
    grad_x, grad_weight = empty
    return grad_x, grad_weight


formulas.counted_by(formulas.route_backward_flops, "lmopt::route_backward")


def _sizes(x_ND: Tensor, weight_ED: Tensor, top_k: int, sum_to_one: bool) -> tuple[bool | int, ...]:
    sizes = len(x_ND), x_ND.shape[1], len(weight_ED), top_k
    return x_ND.dtype == torch.float32, sum_to_one, *sizes, torch.get_num_threads()
