"""From logits to a token: the transforms, and where chance comes in (letters: see lmopt/arch/transformer.py).

All chance of an algorithm passes through one function, `choose(p_V) -> index`. A sampler answers from a seed; a proof
answers with every possible index in turn (lmopt.infer.outcomes) and so computes exactly what the sampler samples from.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmopt.techniques.decoding import Sampling

Choose = Callable[[Tensor], int]
"""Probabilities (V, sum 1) -> one index, drawn with them."""


def largest(logits: Tensor) -> Tensor:
    """The first of the likeliest tokens of each row, ... x V to ... (int64).

    By `max`: of 32,000 bfloat16 numbers `argmax` takes six times as long on a CPU.
    """
    return logits.max(-1).indices


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities of the next token after all transforms, ... x V; float32, or float64 for float64 logits.

    At temperature 0 they are 1 at the likeliest token and 0 elsewhere. Tokens that tie with the k-th stay.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.greedy:
        return torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)
    # the largest becomes 0 first: no temperature then makes an infinity of it, or 0 / 0
    z = (z - z.amax(-1, keepdim=True)) / max(sampling.temperature, torch.finfo(z.dtype).tiny)
    if sampling.top_k is not None and sampling.top_k < z.shape[-1]:
        kth = z.topk(sampling.top_k, dim=-1).values[..., -1:]
        z = z.masked_fill(z < kth, float("-inf"))
    p = z.softmax(-1)
    return p if sampling.top_p is None or sampling.top_p >= 1 else _nucleus(p, sampling.top_p)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Keep the fewest likeliest tokens that reach `top_p` together (at least one), scaled to sum to 1."""
    sorted_p, order = p.sort(dim=-1, descending=True, stable=True)
    before = sorted_p.cumsum(-1) - sorted_p
    kept = torch.where(before < top_p, sorted_p, 0.0)
    kept = torch.zeros_like(p).scatter_(-1, order, kept)
    return kept / kept.sum(-1, keepdim=True)


def seeded(seed: int) -> Choose:
    """A choice that draws with the given probabilities, always the same for the same seed and questions.

    Drawn on the CPU by inverting the distribution function, so that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def choose(p_V: Tensor) -> int:
        edges_V = p_V.detach().to("cpu", torch.float64).cumsum(0)
        u = torch.rand((), dtype=torch.float64, generator=generator) * edges_V[-1]
        # `right`: an index without probability has no interval and is never chosen
        return int(torch.searchsorted(edges_V, u, right=True).clamp_(max=len(edges_V) - 1))

    return choose
