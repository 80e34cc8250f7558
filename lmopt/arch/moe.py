"""Sparsely-gated Mixture-of-Experts: every token goes to its top-k experts, none is dropped (letters: transformer.py).

Shazeer et al. (arXiv 1701.06538) for the layer, MegaBlocks (2211.15841) for doing without a capacity, Switch
(2101.03961, equation 4) for the balance loss, ST-MoE (2202.08906, equation 5) for the z-loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch.activation import relu2, swiglu
from lmopt.arch.numbers import compute_dtype
from lmopt.recipe import Model, Moe


class MoeFfn(nn.Module):
    """Router and experts in the place of one feed-forward. Expert matrices are stored outputs x inputs, stacked."""

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__()
        hidden = config.hidden_for(width)
        inner = 2 * hidden if config.activation == "swiglu" else hidden
        self.config = config
        self.kernel = fastest_kernel() if config.kernel == "auto" else config.kernel
        self.router = nn.Linear(width, config.experts, bias=False)
        self.up = nn.Parameter(torch.empty(config.experts, inner, width))
        self.down = nn.Parameter(torch.empty(config.experts, width, hidden))
        self.latest: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The experts' weighted sum, and balance plus z-loss with their weights."""
        x_ND = x_BTD.flatten(0, -2)
        logits_NE = self.route(x_ND)
        gate_NK, expert_NK = choose(logits_NE, self.config.top_k)
        activation = swiglu if self.config.activation == "swiglu" else relu2
        dtype = compute_dtype(x_ND)
        experts = experts_grouped if self.kernel == "grouped" else experts_loop
        y_ND = experts(x_ND.to(dtype), gate_NK, expert_NK, self.up, self.down, activation)
        self.latest = (logits_NE.detach(), expert_NK)
        return y_ND.view_as(x_BTD), self.auxiliary(logits_NE, expert_NK)

    def route(self, x_ND: Tensor) -> Tensor:
        """Router logits N x E, at least in float32 whatever the rest runs in (Switch, section 2.4)."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return functional.linear(x_ND.to(self.router.weight.dtype), self.router.weight)

    def auxiliary(self, logits_NE: Tensor, expert_NK: Tensor) -> Tensor:
        """balance_loss x (E/k) sum_e (n_e/N) mean_n p_ne + z_loss x mean_n logsumexp(logits_n)^2."""
        balance = balance_loss(logits_NE.softmax(-1), expert_NK)
        z = logits_NE.logsumexp(-1).square().mean()
        return self.config.balance_loss * balance + self.config.z_loss * z

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """The latest batch: share of slots each expert got, the router's entropy in nats a token, both raw losses."""
        if self.latest is None:
            return {}
        logits_NE, expert_NK = self.latest
        p_NE = logits_NE.softmax(-1)
        load_E = slots_per_expert(expert_NK, self.config.experts) / expert_NK.numel()
        return {
            "router_entropy": -(p_NE * logits_NE.log_softmax(-1)).sum(-1).mean().item(),
            "router_balance": balance_loss(p_NE, expert_NK).item(),
            "router_z": logits_NE.logsumexp(-1).square().mean().item(),
            "load_max": load_E.max().item() * self.config.experts,
        } | {f"load/{expert}": share for expert, share in enumerate(load_E.tolist())}


def build(config: Moe, model: Model) -> nn.Module:
    """The feed-forward of one block."""
    return MoeFfn(config, model.width)


def fastest_kernel() -> str:
    """`grouped` where torch has the grouped product, else `loop`."""
    return "grouped" if hasattr(functional, "grouped_mm") else "loop"


def choose(logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Gates and experts of each token, N x k.

    The chosen probabilities are made to sum to 1 where there are several (as in Mixtral, 2401.04088); a single one
    stays as it is, so that the router learns from the loss (Switch, equation 2).
    """
    top_NK, expert_NK = logits_NE.topk(top_k, dim=-1)
    if top_k > 1:
        return top_NK.softmax(-1), expert_NK
    return (top_NK - logits_NE.logsumexp(-1, keepdim=True)).exp(), expert_NK


def slots_per_expert(expert_NK: Tensor, experts: int) -> Tensor:
    """How many of the N x k slots went to each expert: E."""
    return (expert_NK.reshape(-1, 1) == torch.arange(experts, device=expert_NK.device)).sum(0)


def balance_loss(p_NE: Tensor, expert_NK: Tensor) -> Tensor:
    """(E/k) sum_e (n_e/N) mean_n p_ne: 1 when load or probabilities are uniform, E/k when one choice gets all."""
    experts, top_k = p_NE.shape[1], expert_NK.shape[1]
    share_E = slots_per_expert(expert_NK, experts) / len(p_NE)
    return experts / top_k * (share_E * p_NE.mean(0)).sum()


# --- the plain kernel ----------------------------------------------------------------------------


def experts_loop(x_ND, gate_NK, expert_NK, up_EFD, down_EDF, activation):
    """One expert after the other, on the tokens that chose it: the reference that the grouped kernel must equal."""
    y_ND = torch.zeros_like(x_ND)
    for expert in range(len(up_EFD)):
        token, choice = torch.where(expert_NK == expert)
        h = activation(functional.linear(x_ND[token], up_EFD[expert].to(x_ND.dtype)))
        y = functional.linear(h, down_EDF[expert].to(x_ND.dtype))
        y_ND = y_ND.index_add(0, token, y * gate_NK[token, choice, None].to(y.dtype))
    return y_ND


# --- the grouped kernel --------------------------------------------------------------------------


def experts_grouped(x_ND, gate_NK, expert_NK, up_EFD, down_EDF, activation):
    """All experts in one grouped product a layer, over slots sorted by expert."""
    token_S, slot_NK, ends_E = sort_slots(expert_NK, len(up_EFD))
    x_SD = _Dispatch.apply(x_ND, token_S, slot_NK)
    h_SF = activation(_GroupedLinear.apply(x_SD, up_EFD, ends_E))
    y_SD = _GroupedLinear.apply(h_SF, down_EDF, ends_E)
    return _Combine.apply(y_SD, gate_NK.to(y_SD.dtype), token_S, slot_NK)


def sort_slots(expert_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots in the order of their experts: each sorted slot's token (S), where each token's slots went (N x k), and
    where each expert's slots end (E, int32)."""
    expert_S, order_S = expert_NK.flatten().sort(stable=True)
    slot_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    expert_E = torch.arange(experts, device=expert_S.device)
    ends_E = torch.searchsorted(expert_S, expert_E, right=True, out_int32=True)
    return order_S // expert_NK.shape[1], slot_S.view_as(expert_NK), ends_E


class _Dispatch(torch.autograd.Function):
    """Rows of x in slot order. Backward sums a token's slots in one pass, where index_add would scatter them."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_S: Tensor, slot_NK: Tensor) -> Tensor:
        ctx.save_for_backward(slot_NK)
        return x_ND.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None, None]:
        (slot_NK,) = ctx.saved_tensors
        return functional.embedding_bag(slot_NK, grad_SD, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Each token's sum of its slots' rows, weighted by their gates."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, gate_NK: Tensor, token_S: Tensor, slot_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_SD, gate_NK, token_S, slot_NK)
        return functional.embedding_bag(slot_NK, y_SD, mode="sum", per_sample_weights=gate_NK)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_SD, gate_NK, token_S, slot_NK = ctx.saved_tensors
        grad_SD = grad_ND.index_select(0, token_S)
        grad_gate_S = torch.linalg.vecdot(grad_SD, y_SD)
        gate_S = torch.empty_like(gate_NK.flatten()).scatter_(0, slot_NK.flatten(), gate_NK.flatten())
        return grad_SD.mul_(gate_S[:, None]), grad_gate_S[slot_NK], None, None


class _GroupedLinear(torch.autograd.Function):
    """x W_e^T for the rows of each expert e. Weights are cast here, so that their gradient is made in one piece."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
        weight = weight_EFD.to(x_SD.dtype)
        ctx.save_for_backward(x_SD, weight, ends_E)
        ctx.weight_dtype = weight_EFD.dtype
        return grouped_product(x_SD, weight.transpose(1, 2), ends_E)

    @staticmethod
    def backward(ctx: Any, grad_SF: Tensor) -> tuple[Tensor, Tensor, None]:
        x_SD, weight_EFD, ends_E = ctx.saved_tensors
        grad_SF = grad_SF.contiguous()  # the gradient of a sum arrives expanded, which the product refuses
        grad_x_SD = grouped_product(grad_SF, weight_EFD, ends_E)
        grad_weight_EFD = grouped_product(grad_SF.t(), x_SD, ends_E)
        return grad_x_SD, grad_weight_EFD.to(ctx.weight_dtype), None


def grouped_product(a: Tensor, b: Tensor, ends_E: Tensor) -> Tensor:
    """Products of groups in one call: rows of `a` (S x D) with one matrix each of `b` (E x D x F) give S x F; columns of
    `a` (F x S) with rows of `b` (S x D) give one matrix a group, E x F x D. Groups end at `ends_E`."""
    if a.dtype is not torch.float64:
        return functional.grouped_mm(a, b, offs=ends_E)
    bounds = [0, *ends_E.tolist()]  # torch's product has no float64; tests of gradients need it
    groups = [slice(start, end) for start, end in zip(bounds, bounds[1:], strict=False)]
    if b.dim() == 3:
        return torch.cat([a[rows] @ b[group] for group, rows in enumerate(groups)])
    return torch.stack([a[:, columns] @ b[columns] for columns in groups])
