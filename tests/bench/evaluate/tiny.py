"""Small models and plain scorers for the evaluation tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from lmopt.arch.transformer import Transformer, build
from lmopt.recipe import Ffn, FixedBatch, Model, Recipe, SwiGlu


def tiny_model(
    tokenizer: Tokenizer, *, context: int = 48, seed: int = 0, ffn: Ffn | None = None, width: int = 32, heads: int = 4
) -> Transformer:
    """Two layers with parameters large enough that answers differ."""
    vocab = tokenizer.get_vocab_size()
    shape = Model(layers=2, width=width, heads=heads, kv_heads=2, vocab=vocab, context=context)
    batching = FixedBatch(sequences=1, length=context)
    model = build(Recipe(model=shape, ffn=ffn or SwiGlu(), batching=batching, tokens=10**6), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@torch.inference_mode()
def slow_score(model: Transformer, tokens: Sequence[int], scored: int) -> tuple[float, bool]:
    """(log-likelihood, greedy) of the last tokens, one forward pass of one sequence, nothing shared."""
    kept = list(tokens)[-(model.model.context + 1) :]
    log_p = model(torch.tensor([kept[:-1]]))[0].float().log_softmax(-1)
    total, greedy = 0.0, True
    for position in range(len(kept) - 1 - scored, len(kept) - 1):
        total += log_p[position, kept[position + 1]].item()
        greedy &= log_p[position].argmax().item() == kept[position + 1]
    return total, greedy
