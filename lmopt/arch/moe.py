"""Sparsely-gated Mixture-of-Experts: every token goes to its top-k experts, none is dropped (letters: transformer.py).

Shazeer et al. (arXiv 1701.06538) for the layer, MegaBlocks (2211.15841) for doing without a capacity, Switch
(2101.03961, equation 4) for the balance loss, ST-MoE (2202.08906, equation 5) for the z-loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch.activation import relu2, swiglu
from lmopt.arch.experts import experts_grouped, experts_loop
from lmopt.arch.numbers import compute_dtype, without_autocast
from lmopt.recipe import Model, Moe


class MoeFfn(nn.Module):
    """Router and experts in the place of one feed-forward. Expert matrices are stored outputs x inputs, stacked.

    The kernel `auto` is the grouped one, which was the faster at every shape measured (docs/techniques/moe.md).
    """

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__()
        hidden = config.hidden_for(width)
        inner = 2 * hidden if config.activation == "swiglu" else hidden
        self.config = config
        self.experts = experts_loop if config.kernel == "loop" else experts_grouped
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
        y_ND = self.experts(x_ND.to(compute_dtype(x_ND)), gate_NK, expert_NK, self.up, self.down, activation)
        self.latest = (logits_NE.detach(), expert_NK)
        return y_ND.view_as(x_BTD), self.auxiliary(logits_NE, expert_NK)

    def route(self, x_ND: Tensor) -> Tensor:
        """Router logits N x E, at least in float32 whatever the rest runs in (Switch, section 2.4)."""
        with without_autocast(x_ND):
            return functional.linear(x_ND.to(self.router.weight.dtype), self.router.weight)

    def auxiliary(self, logits_NE: Tensor, expert_NK: Tensor) -> Tensor:
        """balance_loss x (E/k) sum_e (n_e/N) mean_n p_ne + z_loss x mean_n logsumexp(logits_n)^2."""
        log_sum_N1 = logits_NE.logsumexp(-1, keepdim=True)
        p_NE = (logits_NE - log_sum_N1).exp()  # a softmax over so few columns takes a CPU ten times as long
        z = log_sum_N1.square().mean()
        return self.config.balance_loss * balance_loss(p_NE, expert_NK) + self.config.z_loss * z

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


def choose(logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Gates and experts of each token, N x k.

    The chosen probabilities are made to sum to 1 where there are several (as in Mixtral, 2401.04088); a single one
    stays as it is, so that the router learns from the loss (Switch, equation 2).
    """
    top_NK, expert_NK = logits_NE.topk(top_k, dim=-1)
    if top_k > 1:
        weight_NK = (top_NK - top_NK[:, :1].detach()).exp()  # a softmax over the chosen; the first is the largest
        return weight_NK / weight_NK.sum(-1, keepdim=True), expert_NK
    return (top_NK - logits_NE.logsumexp(-1, keepdim=True)).exp(), expert_NK


def slots_per_expert(expert_NK: Tensor, experts: int) -> Tensor:
    """How many of the N x k slots went to each expert: E."""
    return (expert_NK.reshape(-1, 1) == torch.arange(experts, device=expert_NK.device)).sum(0)


def balance_loss(p_NE: Tensor, expert_NK: Tensor) -> Tensor:
    """(E/k) sum_e (n_e/N) mean_n p_ne: 1 when load or probabilities are uniform, E/k when one choice gets all."""
    experts, top_k = p_NE.shape[1], expert_NK.shape[1]
    share_E = slots_per_expert(expert_NK, experts) / len(p_NE)
    return experts / top_k * (share_E * p_NE.mean(0)).sum()
