"""A known text read the way a decoding would read it: what it thinks of every next token, and how deep each one went.

Quality of a lossy decoding is judged on it: both sides see the same words, so their differences are theirs alone.
Letters: B texts, N tokens read behind the prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmopt.infer.cache import KvCache
from lmopt.infer.decoder import Decoder
from lmopt.infer.early_exit import ExitRule, read
from lmopt.infer.generate import prefill


@dataclass(frozen=True, slots=True)
class Forced:
    """What a decoding said of the same N tokens of each of B texts."""

    nats_BN: Tensor
    """Surprise at each token, -ln p."""
    choice_BN: Tensor
    """The token it would have written."""
    left_BN: Tensor
    """The layer behind which the token before was left."""


@torch.inference_mode()
def forced(decoder: Decoder, tokens_BT: Tensor, *, prompt: int, rule: ExitRule | None = None) -> Forced:
    """Read texts of equal length behind their first `prompt` tokens; the prompt is read at full depth.

    What is said of the first token behind the prompt comes from reading the prompt, which all decodings do alike: the N
    tokens begin with the second.

    Raises:
        ValueError: fewer than two tokens stand behind the prompt, or the rule does not fit the model.
    """
    texts, length = tokens_BT.shape
    if not 0 < prompt < length - 1:
        raise ValueError(f"texts of {length} tokens with a prompt of {prompt}: two or more must stand behind it")
    if rule is not None:
        rule.check(len(decoder.layers))
    cache = decoder.new_cache(batch=texts, capacity=length - 1)
    prefill(decoder, tokens_BT[:, :prompt].tolist(), cache)
    if rule is None:
        return _one_pass(decoder, tokens_BT, prompt, cache)
    parts = list(_stepwise(decoder, tokens_BT, prompt, cache, rule))
    return Forced(*(torch.stack(column, 1) for column in zip(*parts, strict=True)))


def _one_pass(decoder: Decoder, tokens_BT: Tensor, prompt: int, cache: KvCache) -> Forced:
    """Every layer for every token, all tokens at once; texts in turn, so that few logits exist at a time."""
    states_BND = decoder.extend(tokens_BT[:, prompt:-1].to(decoder.device), cache)
    depth = len(decoder.layers)
    rows = [_said(decoder.logits(states_ND), target_N) for states_ND, target_N in
            zip(states_BND, tokens_BT[:, prompt + 1 :].to(decoder.device), strict=True)]  # fmt: skip
    nats_BN, choice_BN = (torch.stack(column) for column in zip(*rows, strict=True))
    return Forced(nats_BN, choice_BN, torch.full_like(choice_BN, depth))


def _stepwise(
    decoder: Decoder, tokens_BT: Tensor, prompt: int, cache: KvCache, rule: ExitRule
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A token at a time, each to its own depth: what a token left behind is what later ones look at.

    Yields nats, choices and layers, B each, of one place after the other.
    """
    tokens_BT = tokens_BT.to(decoder.device)
    for place in range(prompt, tokens_BT.shape[1] - 1):
        logits_BV, left = read(decoder, tokens_BT[:, place : place + 1], cache, rule)
        nats_B, choice_B = _said(logits_BV, tokens_BT[:, place + 1])
        yield nats_B, choice_B, torch.tensor(left, device=decoder.device)


def _said(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Surprise at each target, and the likeliest token in its place."""
    high_NV = logits_NV.float()
    nats_N = high_NV.logsumexp(-1) - high_NV.gather(-1, target_N[:, None].long())[:, 0]
    return nats_N, high_NV.argmax(-1)
