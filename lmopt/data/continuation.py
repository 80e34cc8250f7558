"""Filling a gap in tokens with a causal model: sample what may stand there, and see how well it leads on.

Letters as in lmopt/arch/transformer.py, with G gaps, K candidates a gap (rows of a batch are G x K), P prefix, M gap
and R suffix tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch.transformer import Transformer

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, B x K x T x C."""


@torch.inference_mode()
def fill(
    model: Transformer,
    prefix_GP: Tensor,
    length: int,
    suffix_GR: Tensor,
    *,
    candidates: int,
    temperature: float,
    top_p: float,
    chance: torch.Generator,
    first_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample `length` tokens behind each prefix, several times.

    Args:
        first_V: which tokens may stand first in a gap, as truth values; None: any.

    Returns:
        The tokens, G x K x M, and the mean log-probability of the suffix behind each, G x K (0 for an empty suffix).
    """
    gaps = len(prefix_GP)
    hidden, past = _extend(model, prefix_GP, None)
    past = [(k.repeat_interleave(candidates, 0), v.repeat_interleave(candidates, 0)) for k, v in past]
    last_BD = hidden[:, -1].repeat_interleave(candidates, 0)
    chosen: list[Tensor] = []
    for place in range(length):
        if place:
            hidden, past = _extend(model, chosen[-1][:, None], past)
            last_BD = hidden[:, -1]
        logits_BV = functional.linear(last_BD, model.head_weight_VD).float()
        if first_V is not None and not place:
            logits_BV = logits_BV.masked_fill(~first_V, -torch.inf)
        chosen.append(_drawn(logits_BV, temperature, top_p, chance))
    made_BM = torch.stack(chosen, 1)
    suffix_BR = suffix_GR.repeat_interleave(candidates, 0)
    if not suffix_BR.shape[1]:
        return made_BM.unflatten(0, (gaps, -1)), torch.zeros(gaps, candidates)
    hidden, _ = _extend(model, torch.cat([made_BM[:, -1:], suffix_BR[:, :-1]], 1), past)
    logits_BRV = functional.linear(hidden, model.head_weight_VD).float()
    nats_BR = functional.cross_entropy(logits_BRV.transpose(1, 2), suffix_BR, reduction="none")
    return made_BM.unflatten(0, (gaps, -1)), -nats_BR.mean(1).unflatten(0, (gaps, -1))


def _extend(model: Transformer, tokens_BT: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    """Normalised states of new tokens, B x T x D, and keys and values up to them."""
    start = 0 if past is None else past[0][0].shape[2]
    count = tokens_BT.shape[1]
    x_BTD = model.embedding(tokens_BT)
    cos_TC, sin_TC = model.rotary(start + count, x_BTD.dtype)
    seen_TS = torch.ones(count, start + count, dtype=torch.bool, device=x_BTD.device).tril(start)
    now: Past = []
    for number, block in enumerate(model.blocks):
        attention = block.attention
        q, k, v = attention.project(block.attention_norm(x_BTD), cos_TC[start:], sin_TC[start:])
        if past is not None:
            k, v = torch.cat([past[number][0], k], 2), torch.cat([past[number][1], v], 2)
        now.append((k, v))
        grouped = attention.key_heads != attention.heads
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen_TS, enable_gqa=grouped)
        x_BTD = x_BTD + attention.output(y.transpose(1, 2).flatten(2))
        x_BTD = x_BTD + block.ffn(block.ffn_norm(x_BTD))[0]
    return model.norm(x_BTD), now


def _drawn(logits_BV: Tensor, temperature: float, top_p: float, chance: torch.Generator) -> Tensor:
    """One token a row, from the fewest likeliest ones that reach `top_p` together (Holtzman et al., 1904.09751)."""
    p_BV, token_BV = (logits_BV / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(-1) - p_BV
    p_BV = torch.where(before_BV < top_p, p_BV, 0.0)
    return token_BV.gather(1, torch.multinomial(p_BV, 1, generator=chance))[:, 0]
