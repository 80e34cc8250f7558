"""AdamW, gradient clipping and the cosine schedule, with nothing read back from the device.

Clipping costs one pass over the gradients (their norm), not two: the factor that `clip_grad_norm_` would multiply
into every gradient is handed to the fused kernel instead, which divides while it reads (the road that loss scaling
takes in mixed precision). The norm stays a tensor on the device; whoever wants it as a number reads it later.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmopt.recipe import AdamW, Cosine
from lmopt.train.compact import CompactAdamW

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What Adam keeps for each parameter: running mean and mean square of its gradient (fp32), and updates done."""


class ClippedAdamW:
    """AdamW over the parameters of one model, with clipping by the global norm (Pascanu et al., arXiv 1211.5063).

    Matrices that multiply activations decay; vectors (norm gains) and embeddings do not. A tied head *is* the
    embedding and so does not decay either.
    """

    def __init__(self, config: AdamW, model: nn.Module) -> None:
        self.clip = config.clip
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        decay = [p for p in self.parameters.values() if p.ndim >= 2 and id(p) not in embeddings]
        rest = [p for p in self.parameters.values() if p.ndim < 2 or id(p) in embeddings]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self.peak_lr = config.lr

    @torch.no_grad()
    def step(self, share: float) -> Tensor:
        """One update at `share` of the peak learning rate; clears the gradients.

        Returns:
            The global gradient norm before clipping, a float32 scalar on the parameters' device (not synchronised).
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        sharded = hasattr(norm, "full_tensor")  # a DTensor, of parameters that lie in shards on many devices
        if sharded:
            norm = norm.full_tensor()
        for group in self.adam.param_groups:
            group["lr"] = share * self.peak_lr
        if self.clip is not None and sharded:  # the fused kernel takes no plain `grad_scale` beside shards
            torch._foreach_mul_([g.to_local() for g in gradients], (self.clip / norm).clamp_(max=1.0))
        elif self.clip is not None:
            # g / max(1, |g| / clip) = g min(1, clip / |g|); the fused kernel divides by `grad_scale`.
            self.adam.grad_scale = (norm / self.clip).clamp_(min=1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """All it needs to go on, as `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`; empty before the first step."""
        return {
            f"{moment}/{name}": self.adam.state[p][moment]
            for name, p in self.parameters.items()
            if p in self.adam.state
            for moment in MOMENTS
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; keys and shapes are the caller's to check."""
        for name, p in self.parameters.items():
            if f"step/{name}" in state:
                self.adam.state[p] = {moment: state[f"{moment}/{name}"] for moment in MOMENTS}

    @torch.no_grad()
    def allocate(self) -> None:
        """Make the state as it is before the first step, zeros, for a reader that fills tensors in place."""
        for p in self.parameters.values():
            moments = {name: torch.zeros_like(p) for name in MOMENTS if name != "step"}
            self.adam.state[p] = {"step": torch.zeros((), device=p.device), **moments}

    def set_steps(self, steps: int) -> None:
        """Say how many updates the state comes from."""
        for p in self.adam.state:
            self.adam.state[p]["step"].fill_(steps)


def build(config: AdamW, model: nn.Module) -> ClippedAdamW | CompactAdamW:
    """The optimizer of a recipe for the parameters of `model`; weights kept in bfloat16 are rounded at random."""
    kept_small = any(p.dtype == torch.bfloat16 for p in model.parameters())
    return CompactAdamW(config, model) if kept_small else ClippedAdamW(config, model)


def schedule(config: Cosine, total: float) -> Callable[[float], float]:
    """Training done after a step, of `total` -> learning rate of that step, as a share of the peak.

    Both in full steps (1 after the first of equal steps), so that where steps hold different numbers of tokens the
    rate follows tokens, as length warm-up needs (Li et al., arXiv 2108.06084, section 4).

    Linear warm-up that reaches 1 at its last step, then half a cosine that reaches `final` at the last step
    (Loshchilov & Hutter, arXiv 1608.03983, eq. 5, without restarts), so that every horizon anneals fully.
    """
    warmup = min(total, max(1, round(config.warmup * total)))

    def share(done: float) -> float:
        if done <= warmup:
            return done / warmup
        progress = (done - warmup) / (total - warmup)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return share
