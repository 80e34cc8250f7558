"""Sparsely-gated Mixture-of-Experts in the place of one feed-forward (letters: see transformer.py).

Shazeer et al. (arXiv 1701.06538). Which experts a token goes to stands in routing.py, what they compute in experts.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmopt.arch import fused
from lmopt.arch.experts import experts_auto, experts_grouped, experts_loop
from lmopt.arch.ffn import Relu2Ffn, SwiGluFfn
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.routing import balance_loss, slots_per_expert
from lmopt.recipe import Model, Moe, builder

KERNELS = {"auto": experts_auto, "grouped": experts_grouped, "loop": experts_loop}


class MoeFfn(nn.Module):
    """Router and experts. Expert matrices are stored outputs x inputs, stacked."""

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__()
        hidden = config.hidden_for(width)
        gated = config.activation == "swiglu"
        self.config = config
        self.experts = KERNELS[config.kernel]
        self.router = builder(config.routing)(config, width)
        self.up = nn.Parameter(torch.empty(config.experts, 2 * hidden if gated else hidden, width))
        self.down = nn.Parameter(torch.empty(config.experts, width, hidden))
        self.shared: nn.Module | None = None
        if config.shared:
            self.shared = (SwiGluFfn if gated else Relu2Ffn)(width, config.shared * hidden)
        self.latest: tuple[Tensor, Tensor, int | None] | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The experts' weighted sum, and the router's losses with their weights."""
        x_ND = x_BTD.flatten(0, -2)
        choice = self.router(x_ND)
        x_ND = x_ND.to(compute_dtype(x_ND))
        y_ND = self.experts(
            x_ND, choice.gate_NK, choice.expert_NK, self.up, self.down, self.config.activation, choice.capacity
        )
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)[0]
        if self.training:
            self.latest = (choice.logits_NE.detach(), choice.expert_NK, choice.capacity)
        return y_ND.view_as(x_BTD), choice.auxiliary

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """The latest tokens trained on, a micro-batch where there are any: what their router did.

        Share of slots each expert was sent and the largest of them over an even share, share of slots dropped, the
        router's entropy in nats a token, balance loss and z-loss before their weights.
        """
        if self.latest is None or not len(self.latest[0]):
            return {}
        logits_NE, expert_NK, capacity = self.latest
        p_NE = logits_NE.softmax(-1)
        slots_E = slots_per_expert(expert_NK, self.config.experts)
        dropped = 0 if capacity is None else (slots_E - capacity).clamp(min=0).sum().item()
        load_E = slots_E / expert_NK.numel()
        return {
            "router_entropy": -(p_NE * logits_NE.log_softmax(-1)).sum(-1).mean().item(),
            "router_balance": balance_loss(p_NE, expert_NK).item(),
            "router_z": logits_NE.logsumexp(-1).square().mean().item(),
            "drop_rate": dropped / expert_NK.numel(),
            "load_max": load_E.max().item() * self.config.experts,
        } | {f"load/{expert}": share for expert, share in enumerate(load_E.tolist())}


def kernel_in_use(config: Moe, width: int, dtype: torch.dtype, device: torch.device) -> tuple[str, str | None]:
    """The kernel that trains a layer whose products are in this format, and why it is not the fused one."""
    if config.kernel != "auto":
        return config.kernel, "the recipe names another"
    reason = fused.unsuited(fused.EXPERT_FORMATS, dtype, device, width, config.hidden_for(width))
    return ("fused" if reason is None else "grouped"), reason


def build(config: Moe, model: Model) -> nn.Module:
    """The feed-forward of one block."""
    return MoeFfn(config, model.width)
