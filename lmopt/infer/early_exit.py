"""Decoding in which a token leaves the model as soon as an exit is sure enough of it.

CALM (arXiv 2207.07061): confidence is the gap between the two likeliest tokens, the probability of the likeliest, or
how little the last layer changed the state. Later tokens look at every layer's keys and values, so the layers that a
token skipped get theirs from the state it left with (CALM's state copying). Exits share the model's norm and head
(LayerSkip, 2404.16710). Letters: see lmopt/arch/transformer.py; R rows still on their way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.infer.cache import KvCache
from lmopt.infer.decoder import Decoder
from lmopt.infer.generate import append_next, prefill, taken
from lmopt.infer.sequence import Decoded, Stops, begin
from lmopt.quantities import possible
from lmopt.techniques.decoding import Sampling

Measure = Literal["gap", "confidence", "similarity"]


@dataclass(frozen=True, slots=True)
class ExitRule:
    """When a token leaves. At threshold 1 none does, whatever its confidence: full depth, exactly."""

    exits: tuple[int, ...]
    """Layers behind which a token may leave, ascending."""
    threshold: float
    """Confidence, from 0 to 1, at and above which it does."""
    measure: Measure = "gap"
    """`gap`: p1 - p2 of the two likeliest tokens; `confidence`: p1; `similarity`: cosine of the states before and
    behind the layer."""

    def check(self, layers: int) -> None:
        """Raise ValueError where a model of so many layers cannot follow the rule."""
        if list(self.exits) != sorted(set(self.exits)) or not all(1 <= layer < layers for layer in self.exits):
            raise ValueError(
                f"exits {list(self.exits)} of a model of {layers} layers: {possible(1, layers - 1)}, in ascending order"
            )
        if self.measure not in get_args(Measure):
            raise ValueError(f"nothing measures {self.measure!r}: {', '.join(get_args(Measure))}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold}: from 0 to 1 is possible")


def generate_early(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    rule: ExitRule,
    *,
    max_new: int,
    sampling: Sampling | None = None,
    stops: Stops = (),
    seed: int = 0,
) -> Iterator[Decoded]:
    """As `lmopt.infer.generate.generate`, each token at its own depth; prompts are read at full depth.

    Every step's notes hold `left/LAYER`, how many tokens left behind that layer; the depth counts those that did not
    leave early. A batch writes what its prompts would write one by one.

    Raises:
        PromptTooLong, ValueError: as `generate`; or the rule does not fit the model.
    """
    rule.check(len(decoder.layers))
    texts = begin(decoder, prompts, max_new=max_new, stops=stops, seed=seed)
    sampling = sampling or Sampling()
    cache = decoder.new_cache(batch=len(texts), capacity=max(text.longest for text in texts))
    logits_BV = decoder.logits(prefill(decoder, [text.tokens for text in texts], cache))
    left = [len(decoder.layers)] * len(texts)
    live, index = texts, 0
    while True:
        append_next(logits_BV, live, sampling)
        index += 1
        yield taken(index, texts, {f"left/{layer}": left.count(layer) for layer in sorted(set(left))})
        rows = [row for row, text in enumerate(live) if not text.ended]
        if not rows:
            return
        if len(rows) < len(live):
            cache.keep(rows)
            live = [live[row] for row in rows]
        last_B1 = torch.tensor([[text.tokens[-1]] for text in live], device=decoder.device)
        logits_BV, left = read(decoder, last_B1, cache, rule)


@torch.inference_mode()
def read(decoder: Decoder, last_B1: Tensor, cache: KvCache, rule: ExitRule) -> tuple[Tensor, list[int]]:
    """Read one token of each row, each to its own depth.

    Returns:
        Logits B x V and the layer behind which each row left. The cache counts the tokens, all layers filled.
    """
    depth = len(decoder.layers)
    exits = rule.exits if rule.threshold < 1 else ()
    rows, left = list(range(len(last_B1))), [depth] * len(last_B1)
    logits_BV = torch.empty(len(rows), decoder.vocab, dtype=decoder.dtype, device=decoder.device)
    x_R1D, first = decoder.embed(last_B1), 0
    for layer in exits:
        within = rows if len(rows) < len(last_B1) else None
        before_R1D = x_R1D
        if rule.measure == "similarity":
            before_R1D = decoder.run(x_R1D, cache, first=first, last=layer - 1, rows=within)
            first = layer - 1
        x_R1D = decoder.run(before_R1D, cache, first=first, last=layer, rows=within)
        first = layer
        leaves_R, logits_RV = _sure(decoder, before_R1D, x_R1D, rule)
        gone = [number for number, leaves in enumerate(leaves_R.tolist()) if leaves]
        if not gone:
            continue
        there = [rows[number] for number in gone]
        if logits_RV is None:
            logits_BV[there] = decoder.logits(decoder.norm(x_R1D[gone, 0]))
        else:
            logits_BV[there] = logits_RV[gone]
        decoder.fill(x_R1D[gone], cache, first=layer, rows=there)
        for row in there:
            left[row] = layer
        stay = [number for number in range(len(rows)) if number not in gone]
        rows, x_R1D = [rows[number] for number in stay], x_R1D[stay]
        if not rows:
            break
    if rows:
        x_R1D = decoder.run(x_R1D, cache, first=first, rows=rows if len(rows) < len(last_B1) else None)
        logits_BV[rows] = decoder.logits(decoder.norm(x_R1D[:, 0]))
    cache.advance([1] * len(last_B1))
    return logits_BV, left


def _sure(decoder: Decoder, before_R1D: Tensor, x_R1D: Tensor, rule: ExitRule) -> tuple[Tensor, Tensor | None]:
    """Which rows may leave here, and the exit's logits where these were computed to know it. `before` is the state
    before the layer where similarity asks for it."""
    if rule.measure == "similarity":
        return functional.cosine_similarity(before_R1D[:, 0].float(), x_R1D[:, 0].float()) >= rule.threshold, None
    logits_RV = decoder.logits(decoder.norm(x_R1D[:, 0]))
    top_R2 = logits_RV.float().softmax(-1).topk(2, dim=-1).values
    sure_R = top_R2[:, 0] - top_R2[:, 1] if rule.measure == "gap" else top_R2[:, 0]
    return sure_R >= rule.threshold, logits_RV
