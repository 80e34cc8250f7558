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
STRETCH = 2.0**15
"""Shares of a block's largest magnitude are multiplied by it on their way through float16, which has its 11 bits only
above 6e-5: the book's smallest numbers are 3e-7."""
SLICE = 1 << 18
"""Numbers of a parameter that a CPU unpacks and updates at once, some 40 bytes each: they stay in its cache, and leave
no holes of a whole embedding's size in the heap, which grew with every step (docs/training.md)."""
DEVICE_SLICE = 1 << 24
"""The same of an accelerator, which wants few and large kernels."""
MOMENTS = ("exp_avg", "exp_avg_sq")
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
    """Bits of a float16 number, `STRETCH` times a share -> code of the nearest number in the book.

    A look-up is six times as fast as a search. float16 has 11 bits where the book has 6 at most, so another code than
    the nearest is taken only within 0.05% of the middle between two. A mean square is never taken for zero, the book's
    first number, but for the second (Li et al., arXiv 2309.01507, section 4.1): its root divides, and a token that is
    seldom seen, beside frequent ones in a block, moved by fifty times the learning rate.
    """
    bits = torch.arange(-(1 << 15), 1 << 15, device=device).to(torch.int16)
    values = bits.view(torch.float16).float().nan_to_num(0.0).div_(STRETCH).clamp_(-1.0, 1.0)
    book = codebook(signed, device)
    codes = torch.bucketize(values, (book[:-1] + book[1:]) / 2)
    return (codes if signed else codes.clamp_(min=1)).to(torch.uint8)


def encode(x: Tensor, block: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of x) and the largest magnitude of each block of consecutive numbers (float32)."""
    flat = x.flatten()
    padded = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = padded.abs().amax(1)
    stretched = padded / (scale.clamp(min=STRETCH * torch.finfo(torch.float32).tiny) / STRETCH)[:, None]
    places = stretched.to(torch.float16).view(torch.int16).int().add_(1 << 15)
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
                self._update(name, p, divisor, share * self.config.lr)
                p.grad = None
        return norm

    def _update(self, name: str, p: Tensor, divisor: Tensor, lr: float) -> None:
        """One parameter, a slice after the other; moments stay where they lie from the first step on."""
        assert p.grad is not None
        is_first = f"exp_avg/{name}" not in self.kept
        if is_first:
            for moment in MOMENTS:
                self._allocate(moment, name, p)
        weights, grads = p.view(-1), p.grad.reshape(-1)
        most = SLICE if p.device.type == "cpu" else DEVICE_SLICE
        step = most - most % (self.block or 1)
        for first in range(0, p.numel(), step):
            part = slice(first, min(first + step, p.numel()))
            self._update_part(name, weights[part], grads[part].float() / divisor, part, lr, is_first)

    def _update_part(self, name: str, p: Tensor, grad: Tensor, part: slice, lr: float, is_first: bool) -> None:
        beta1, beta2 = self.config.betas
        moments = (torch.zeros_like(grad) if is_first else self._read(moment, name, part) for moment in MOMENTS)
        mean = next(moments).lerp_(grad, 1 - beta1)
        square = next(moments).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (square.sqrt() / math.sqrt(1 - beta2**self.steps)).add_(self.config.eps)
        decay = lr * self.config.weight_decay if self.decays[name] else 0.0
        new = p.float().mul(1 - decay).addcdiv_(mean, root, value=-lr / (1 - beta1**self.steps))
        p.copy_(stochastic_bfloat16(new) if p.dtype == torch.bfloat16 else new)
        for moment, value in zip(MOMENTS, (mean, square), strict=True):
            self._write(moment, name, part, value)

    def _allocate(self, moment: str, name: str, like: Tensor) -> None:
        if self._is_coded(like):
            assert self.block is not None
            blocks = -(-like.numel() // self.block)
            self.kept[f"{moment}_scale/{name}"] = torch.empty(blocks, dtype=torch.float32, device=like.device)
        dtype = torch.uint8 if self._is_coded(like) else torch.float32
        self.kept[f"{moment}/{name}"] = torch.empty(like.shape, dtype=dtype, device=like.device)

    def _read(self, moment: str, name: str, part: slice) -> Tensor:
        kept = self.kept[f"{moment}/{name}"]
        if not self._is_coded(kept):
            return kept.view(-1)[part]
        return decode(kept.view(-1)[part], *self._scale(moment, name, part), signed=moment == "exp_avg")

    def _write(self, moment: str, name: str, part: slice, value: Tensor) -> None:
        kept = self.kept[f"{moment}/{name}"]
        if self._is_coded(kept):
            scale, block = self._scale(moment, name, part)
            value, found = encode(value, block, signed=moment == "exp_avg")
            scale.copy_(found)
        kept.view(-1)[part] = value

    def _scale(self, moment: str, name: str, part: slice) -> tuple[Tensor, int]:
        """The scales of a slice, and how many numbers share one."""
        assert self.block is not None
        return self.kept[f"{moment}_scale/{name}"][part.start // self.block : -(-part.stop // self.block)], self.block

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
