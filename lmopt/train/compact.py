"""AdamW for weights kept in bfloat16, for moments kept in 8 bits, or both.

The arithmetic is float32, one parameter at a time: read what is kept, update, write it back smaller. A bfloat16 weight
is rounded at random, so that updates far below its spacing still add up; a moment becomes the nearest of 256 numbers
times the largest magnitude of its block (Dettmers et al., arXiv 2110.02861).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from lmopt.compute.rounding import stochastic_bfloat16
from lmopt.recipe import AdamW, AdamW8bit

SMALL = 4096
"""Tensors of fewer numbers keep float32 moments (2110.02861's released code): they take no room, and vary most."""
CODES = 256
UPDATES = "updates"
"""Key of the number of updates done."""


@functools.cache
def codebook(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers of dynamic tree quantisation in [-1, 1] or [0, 1], ascending, float32.

    Seven decades; decade i holds the midpoints of 2^i (signed) or 2^(i+1) equal parts of [0.1, 1], times 10^(i-6);
    zero and one are added (2110.02861, section 2.1, and its released `create_dynamic_map`).
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64)
        middles = (10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
        numbers += middles + ([-number for number in middles] if signed else [])
    assert len(numbers) == CODES
    return torch.tensor(sorted(numbers), dtype=torch.float32, device=device)


@functools.cache
def _nearest(signed: bool, device: torch.device) -> Tensor:
    """Bits of a float16 number -> code of the nearest number in the book: a look-up is six times as fast as a search.

    float16 has 11 bits where the book has 6 at most, so another code than the nearest is taken only within 0.05 % of
    the middle between two.
    """
    bits = torch.arange(-(1 << 15), 1 << 15, device=device).to(torch.int16)
    values = bits.view(torch.float16).float().nan_to_num(0.0).clamp(-1.0, 1.0)
    book = codebook(signed, device)
    return torch.bucketize(values, (book[:-1] + book[1:]) / 2).to(torch.uint8)


def encode(x: Tensor, block: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of x) and the largest magnitude of each block of consecutive numbers (float32)."""
    flat = x.flatten()
    padded = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = padded.abs().amax(1)
    shares = padded / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    places = shares.to(torch.float16).view(torch.int16).int().add_(1 << 15)
    codes = _nearest(signed, x.device).index_select(0, places.flatten())
    return codes[: len(flat)].view_as(x), scale


def decode(codes: Tensor, scale: Tensor, block: int, *, signed: bool) -> Tensor:
    """What `encode` kept, float32."""
    flat = codebook(signed, codes.device).index_select(0, codes.flatten().int())
    padded = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block) * scale[:, None]
    return padded.flatten()[: len(flat)].view(codes.shape)


class CompactAdamW:
    """The interface of `lmopt.train.optimizer.ClippedAdamW`; state is a flat mapping of tensors by `moment/NAME`."""

    def __init__(self, config: AdamW, model: nn.Module) -> None:
        self.config = config
        self.block = config.block if isinstance(config, AdamW8bit) else None
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.decays = {name: p.ndim >= 2 and id(p) not in embeddings for name, p in self.parameters.items()}
        self.kept: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> Tensor:
        """One update at `share` of the peak learning rate; clears the gradients. Returns the norm before clipping."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        divisor = (norm / self.config.clip).clamp_(min=1.0) if self.config.clip is not None else torch.ones_like(norm)
        self.steps += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                self._update(name, p, p.grad.float() / divisor, share * self.config.lr)
                p.grad = None
        return norm

    def _update(self, name: str, p: Tensor, grad: Tensor, lr: float) -> None:
        beta1, beta2 = self.config.betas
        mean = self._read("exp_avg", name, grad).lerp_(grad, 1 - beta1)
        square = self._read("exp_avg_sq", name, grad).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (square.sqrt() / math.sqrt(1 - beta2**self.steps)).add_(self.config.eps)
        decay = lr * self.config.weight_decay if self.decays[name] else 0.0
        new = p.float().mul(1 - decay).addcdiv_(mean, root, value=-lr / (1 - beta1**self.steps))
        p.copy_(stochastic_bfloat16(new) if p.dtype == torch.bfloat16 else new)
        self._write("exp_avg", name, mean)
        self._write("exp_avg_sq", name, square)

    def _read(self, moment: str, name: str, like: Tensor) -> Tensor:
        key = f"{moment}/{name}"
        if key not in self.kept:
            return torch.zeros_like(like)
        if self._is_coded(like):
            assert self.block is not None
            scale = self.kept[f"{moment}_scale/{name}"]
            return decode(self.kept[key], scale, self.block, signed=moment == "exp_avg")
        return self.kept[key]

    def _write(self, moment: str, name: str, value: Tensor) -> None:
        if self._is_coded(value):
            assert self.block is not None
            value, scale = encode(value, self.block, signed=moment == "exp_avg")
            self.kept[f"{moment}_scale/{name}"] = scale
        self.kept[f"{moment}/{name}"] = value

    def _is_coded(self, x: Tensor) -> bool:
        return self.block is not None and x.numel() >= SMALL

    def state(self) -> dict[str, Tensor]:
        """All it needs to go on; empty before the first step."""
        return {**self.kept, UPDATES: torch.tensor(self.steps)} if self.steps else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; keys and shapes are the caller's to check."""
        self.steps = int(state.get(UPDATES, torch.tensor(0)))
        self.kept = {key: value for key, value in state.items() if key != UPDATES}


def build(config: AdamW, model: nn.Module) -> CompactAdamW:
    """The optimizer for a model whose weights, or a recipe whose moments, are kept in fewer bits."""
    return CompactAdamW(config, model)
