"""Which experts a token goes to and how much each counts: one router a kind of routing (letters: transformer.py).

A router scores tokens in float32, chooses, and states the losses that keep its load even. What each kind does
differently stands in its class; the formulas are cited in `lmopt.techniques.routing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch.numbers import without_autocast
from lmopt.arch.routing_fused import Route, suits
from lmopt.recipe import Moe
from lmopt.techniques.routing import LossFree, NoisyTopK, Switch

LEAST_NOISE = 1e-2
"""Noise may not vanish: the load loss divides by its size, and its gradient would be no number. Of the authors' code,
which adds it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the tokens of a batch go."""

    logits_NE: Tensor
    """Scores before any noise or bias, float32."""
    gate_NK: Tensor
    expert_NK: Tensor
    auxiliary: Tensor
    """Losses with their weights, a scalar."""
    capacity: int | None = None
    """Slots that an expert takes at most, in the order of the tokens; None where none is dropped."""


class DroplessRouter(nn.Module):
    """Top-k by softmax; balance loss and z-loss. The other kinds are built upon it.

    Its `forward` has a kernel for all of this: what differs in a kind must be in a `forward` of its own.
    """

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__()
        self.config = config
        self.hidden = config.hidden_for(width)
        self.weight = nn.Parameter(torch.empty(config.experts, width))

    def forward(self, x_ND: Tensor) -> Choice:
        config = self.config
        if config.kernel == "auto" and suits(x_ND, self.weight, self.hidden):
            losses = config.balance_weight, config.z_weight
            return Choice(*Route.apply(x_ND, self.weight, config.top_k, config.gates_sum_to_one, *losses))
        logits_NE = scores(x_ND, self.weight)
        gate_NK, expert_NK = choose(logits_NE, config.top_k, config.gates_sum_to_one)
        return Choice(logits_NE, gate_NK, expert_NK, self.auxiliary(logits_NE, expert_NK))

    def auxiliary(self, logits_NE: Tensor, expert_NK: Tensor) -> Tensor:
        """balance_loss x (E/k) sum_e (n_e/N) mean_n p_ne + z_loss x mean_n logsumexp(logits_n)^2."""
        if not (self.config.balance_weight or self.config.z_weight):
            return logits_NE.new_zeros(())
        return _RouterLosses.apply(logits_NE, expert_NK, self.config.balance_weight, self.config.z_weight)


class SwitchRouter(DroplessRouter):
    """One expert a token, which takes no more than its capacity while training."""

    def forward(self, x_ND: Tensor) -> Choice:
        choice = super().forward(x_ND)
        if not self.training:
            return choice
        assert isinstance(self.config.routing, Switch)
        capacity = self.config.routing.capacity(len(x_ND), self.config.experts) or None  # no token, no slot
        return Choice(choice.logits_NE, choice.gate_NK, choice.expert_NK, choice.auxiliary, capacity)


class NoisyRouter(DroplessRouter):
    """Top-k of scores plus noise of a learned size; importance loss and load loss."""

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__(config, width)
        self.noise = nn.Parameter(torch.empty(config.experts, width))

    def forward(self, x_ND: Tensor) -> Choice:
        clean_NE = scores(x_ND, self.weight)
        if not self.training:
            gate_NK, expert_NK = choose(clean_NE, self.config.top_k, self.config.gates_sum_to_one)
            return Choice(clean_NE, gate_NK, expert_NK, self.auxiliary(clean_NE, expert_NK))
        spread_NE = functional.softplus(scores(x_ND, self.noise)).clamp(min=LEAST_NOISE)
        noisy_NE = clean_NE + torch.randn_like(clean_NE) * spread_NE
        gate_NK, expert_NK = choose(noisy_NE, self.config.top_k, self.config.gates_sum_to_one)
        auxiliary = self.auxiliary(clean_NE, expert_NK)
        auxiliary = auxiliary + self.evenness(clean_NE, noisy_NE, spread_NE, gate_NK, expert_NK)
        return Choice(clean_NE, gate_NK, expert_NK, auxiliary)

    def evenness(
        self, clean_NE: Tensor, noisy_NE: Tensor, spread_NE: Tensor, gate_NK: Tensor, expert_NK: Tensor
    ) -> Tensor:
        """Importance loss (eq. 7) and load loss (eq. 11) with their weights."""
        routing, experts = self.config.routing, self.config.experts
        assert isinstance(routing, NoisyTopK)
        importance_E = gate_NK.new_zeros(experts).index_add(0, expert_NK.flatten(), gate_NK.flatten())
        total = routing.importance_loss * squared_variation(importance_E)
        if self.config.top_k == experts:
            return total  # every token reaches every expert, whatever the noise
        load_E = expected_load(clean_NE, noisy_NE, spread_NE, self.config.top_k)
        return total + routing.load_loss * squared_variation(load_E)


class LossFreeRouter(DroplessRouter):
    """Top-k of score plus bias, gates from the score; biases follow the load after each step."""

    def __init__(self, config: Moe, width: int) -> None:
        super().__init__(config, width)
        self.register_buffer("bias_E", torch.zeros(config.experts))
        self.register_buffer("load_E", torch.zeros(config.experts), persistent=False)

    def fill(self) -> None:
        """No bias and no load yet."""
        self.bias_E.zero_()
        self.load_E.zero_()

    def forward(self, x_ND: Tensor) -> Choice:
        logits_NE = scores(x_ND, self.weight)
        assert isinstance(self.config.routing, LossFree)
        if self.config.routing.score == "sigmoid":
            score_NE = logits_NE.sigmoid()
        else:
            score_NE = (logits_NE - logits_NE.logsumexp(-1, keepdim=True)).exp()
        _, expert_NK = (score_NE.detach() + self.bias_E).topk(self.config.top_k, dim=-1)
        gate_NK = score_NE.gather(1, expert_NK)
        if self.config.gates_sum_to_one:
            gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
        if self.training:
            self.load_E += slots_per_expert(expert_NK, self.config.experts)
        return Choice(logits_NE, gate_NK, expert_NK, self.auxiliary(logits_NE, expert_NK))

    def forget(self) -> None:
        """Take back the load since the last step: that step is not done."""
        self.load_E.zero_()

    @torch.no_grad()
    def settle(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """bias += rate x sign(mean load - load), over all passes since the last step (algorithm 1).

        `total` sums the load over all that share the batch, so that their biases stay the same.
        """
        assert isinstance(self.config.routing, LossFree)
        load_E = self.load_E if total is None else total(self.load_E)
        self.bias_E += self.config.routing.rate * (load_E.mean() - load_E).sign_()
        self.load_E.zero_()


# --- pieces --------------------------------------------------------------------------------------


def scores(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """x W^T, N x E, at least in float32 whatever the rest runs in (Switch, section 2.4)."""
    high = torch.promote_types(weight_ED.dtype, torch.float32)
    with without_autocast(x_ND):
        return functional.linear(x_ND.to(high), weight_ED.to(high))


def choose(logits_NE: Tensor, top_k: int, sum_to_one: bool) -> tuple[Tensor, Tensor]:
    """Gates and experts of each token, N x k.

    A gate is the expert's probability, or its share of the chosen ones' probabilities. A single one should stay as it
    is, so that the router learns from the loss (Switch, equation 2).
    """
    return _Gates.apply(logits_NE, top_k, sum_to_one)


def slots_per_expert(expert_NK: Tensor, experts: int) -> Tensor:
    """How many of the N x k slots went to each expert: E."""
    return (expert_NK.reshape(-1, 1) == torch.arange(experts, device=expert_NK.device)).sum(0)


def balance_loss(p_NE: Tensor, expert_NK: Tensor) -> Tensor:
    """(E/k) sum_e (n_e/N) mean_n p_ne: 1 when load or probabilities are uniform, E/k when one choice gets all."""
    experts, top_k = p_NE.shape[1], expert_NK.shape[1]
    share_E = slots_per_expert(expert_NK, experts) / len(p_NE)
    return experts / top_k * (share_E * p_NE.mean(0)).sum()


def expected_load(clean_NE: Tensor, noisy_NE: Tensor, spread_NE: Tensor, top_k: int) -> Tensor:
    """Tokens that each expert would get if its own noise were drawn anew: E (Shazeer et al., eq. 8 to 10).

    An expert is chosen when it beats the k-th largest of the others' noisy scores, which is the (k+1)-th of all for
    one that was chosen and the k-th of all for one that was not.
    """
    largest = noisy_NE.topk(top_k + 1, dim=-1).values
    last_chosen_N1, first_left_N1 = largest[:, top_k - 1 : top_k], largest[:, top_k:]
    to_beat_NE = torch.where(noisy_NE > first_left_N1, first_left_N1, last_chosen_N1)
    return torch.special.ndtr((clean_NE - to_beat_NE) / spread_NE).sum(0)


def squared_variation(x_E: Tensor) -> Tensor:
    """Variance over squared mean: 0 when all are equal."""
    return x_E.var(unbiased=False) / (x_E.mean().square() + 1e-10)  # 1e-10: of the authors' code, for an empty batch


# --- gradients by hand: dozens of operations on N x E numbers otherwise, each with its own start --


class _Gates(torch.autograd.Function):
    """Top-k, and a softmax over the chosen or their part of the softmax over all.

    Nothing that is returned was written in place: compiled by torch 2.11, it would lose its gradient without a word.
    """

    @staticmethod
    def forward(ctx: Any, logits_NE: Tensor, top_k: int, sum_to_one: bool) -> tuple[Tensor, Tensor]:
        top_NK, expert_NK = logits_NE.topk(top_k, dim=-1)
        if sum_to_one:
            gate_NK = (top_NK - top_NK[:, :1]).exp_()  # the first is the largest
            gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
            ctx.save_for_backward(gate_NK, expert_NK)
        else:
            log_sum_N1 = logits_NE.logsumexp(-1, keepdim=True)
            gate_NK = (top_NK - log_sum_N1).exp()
            ctx.save_for_backward(gate_NK, expert_NK, (logits_NE - log_sum_N1).exp_())
        ctx.sum_to_one, ctx.experts = sum_to_one, logits_NE.shape[1]
        ctx.mark_non_differentiable(expert_NK)
        return gate_NK, expert_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        gate_NK, expert_NK, *p_NE = ctx.saved_tensors
        through_NK = gate_NK * grad_NK
        total_N1 = through_NK.sum(-1, keepdim=True)
        if ctx.sum_to_one:
            through_NK -= gate_NK * total_N1
            grad_NE = grad_NK.new_zeros(len(grad_NK), ctx.experts)
        else:
            grad_NE = p_NE[0] * -total_N1
        return grad_NE.scatter_add_(1, expert_NK, through_NK), None, None


class _RouterLosses(torch.autograd.Function):
    """Balance loss and z-loss with their weights; the load is a count and has no gradient."""

    @staticmethod
    def forward(ctx: Any, logits_NE: Tensor, expert_NK: Tensor, balance: float, z: float) -> Tensor:
        log_sum_N1 = logits_NE.logsumexp(-1, keepdim=True)
        p_NE = (logits_NE - log_sum_N1).exp_()  # a softmax over so few columns takes a CPU ten times as long
        tokens, experts = max(1, len(logits_NE)), logits_NE.shape[1]  # of none at all the losses are 0
        load_E = slots_per_expert(expert_NK, experts).to(p_NE.dtype)
        pull_E = load_E * (balance * experts / (tokens * expert_NK.shape[1]) / tokens)
        ctx.save_for_backward(p_NE, log_sum_N1, pull_E)
        ctx.z = z / tokens
        return (pull_E * p_NE.sum(0)).sum() + ctx.z * log_sum_N1.square().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        p_NE, log_sum_N1, pull_E = ctx.saved_tensors
        own_N1 = (2 * ctx.z * log_sum_N1).sub_((p_NE @ pull_E)[:, None])
        return (pull_E + own_N1).mul_(p_NE).mul_(grad), None, None, None
