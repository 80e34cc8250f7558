"""Small models for tests of generation."""

from __future__ import annotations

import torch

from lmopt.arch import transformer
from lmopt.arch.loss import IGNORED
from lmopt.arch.transformer import Transformer
from lmopt.recipe import FixedBatch, Model, Moe, Recipe, Relu2, SwiGlu

VOCAB = 61
DENSE = {"ffn": SwiGlu()}
GROUPED = {"ffn": Relu2(), "kv_heads": 2, "qk_norm": True}
SPARSE = {"ffn": Moe(experts=4, top_k=2, hidden=32)}
SHARED = {"ffn": Moe(experts=2, top_k=2, shared=1, hidden=32)}
TOGETHER = {"ffn": SwiGlu(), "kv_heads": 2, "qk_norm": True, "qk_norm_over": "all"}
WIDE = {"ffn": SwiGlu(), "width": 64, "heads": 2, "kv_heads": 1}
"""Heads of 32, which attention over a cache has a kernel for; the others are narrower."""
SHAPES = {"dense": DENSE, "wide": WIDE, "grouped": GROUPED, "together": TOGETHER, "sparse": SPARSE, "shared": SHARED}


def recipe(*, layers: int = 3, vocab: int = VOCAB, ffn=None, width: int = 32, heads: int = 4, **model) -> Recipe:
    """A recipe of a tiny decoder."""
    shape = Model(layers=layers, width=width, heads=heads, vocab=vocab, context=64, **model)
    return Recipe(model=shape, ffn=ffn or SwiGlu(), batching=FixedBatch(sequences=2, length=32), tokens=10_000)


def tiny(*, seed: int = 0, **choices) -> Transformer:
    """A tiny decoder whose logits are far enough apart that rounding does not reorder them."""
    model = transformer.build(recipe(**choices), seed=seed).eval().requires_grad_(False)
    model.embedding.weight.mul_(20)
    return model


def tokens(*shape: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def packed_apart(loss) -> tuple[float, float]:
    """(loss of five documents in two packed sequences, the mean over their tokens of each document's own loss)."""
    sizes = ((5, 4), (2, 4, 2))  # the second sequence ends in padding
    tokens_BT, targets_BT = tokens(2, 9), torch.full((2, 9), IGNORED)
    segments_BT, total, count = torch.zeros(2, 9, dtype=torch.int64), 0.0, 0
    for row, documents in enumerate(sizes):
        first = 0
        for number, size in enumerate(documents, 1):
            document = tokens_BT[row : row + 1, first : first + size]
            targets_BT[row, first : first + size - 1] = document[0, 1:]
            segments_BT[row, first : first + size] = number
            total += loss(document[:, :-1], document[:, 1:]).total.item() * (size - 1)
            first, count = first + size, count + size - 1
    return loss(tokens_BT, targets_BT, segments_BT).total.item(), total / count
