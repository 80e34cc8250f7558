"""Whether speculation on this very model is lossless: greedy text token by token, sampled text by enumeration.

The rule itself is proven on toy models to 1e-12 (tests); what is checked here is a trained model with its cache, its
draft and its number format. Letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lmopt.infer.decoder import Decoder
from lmopt.infer.decoding import Aid, new_draft
from lmopt.infer.outcomes import outcomes
from lmopt.infer.sampling import Choose, probabilities
from lmopt.infer.sequence import Text
from lmopt.infer.speculative import CachedTarget, DraftLength, Target, rounds
from lmopt.techniques.decoding import Sampling, Speculative

TIE_UNITS = 8.0
"""Two tokens tie if their logits lie within this many units in the last place of the larger. A pass over several tokens
adds attention up in another order than a pass over one, and a rounding passes through every layer."""
CHECKED_TOKENS = 3
"""New tokens whose joint distribution is enumerated: one from the prompt, then a drafted one and what follows it."""
CHECKED = Sampling(temperature=1.0, top_k=3)
"""Three possibilities a token, so that all ways the coins may fall are few."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Texts of two decodings of the same prompts."""

    texts: int
    identical: int
    tied: int
    """Those that first differ where two tokens all but tie in the number format: either is right."""

    @property
    def wrong(self) -> int:
        """Those that differ for no such reason."""
        return self.texts - self.identical - self.tied


def agreement(
    decoder: Decoder, prompts: Sequence[Sequence[int]], ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> Agreement:
    """Compare greedy texts, new tokens only; where two differ, the decoder says whether the tokens tie."""
    identical = tied = 0
    for prompt, one, two in zip(prompts, ours, theirs, strict=True):
        place = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
        if place is None:
            identical += len(one) == len(two)
        else:
            tied += _tie(decoder, [*prompt, *one[:place]], one[place], two[place])
    return Agreement(len(prompts), identical, tied)


def _tie(decoder: Decoder, text: Sequence[int], one: int, two: int) -> bool:
    cache = decoder.new_cache(batch=1, capacity=len(text))
    logits_V = decoder.logits(decoder.extend(torch.tensor([text], device=decoder.device), cache)[0, -1]).float()
    best = float(logits_V.max())
    unit = torch.finfo(decoder.dtype).eps * max(1.0, float(logits_V.abs().max()))
    return best - min(float(logits_V[one]), float(logits_V[two])) <= TIE_UNITS * unit


class Sampled(NamedTuple):
    """Sampled texts of a decoding beside the model's own."""

    distance: float
    """Half the sum of |P - Q| over all texts: zero but for rounding."""
    drafted: int
    """Tokens drafted, over all the ways in which the coins may fall; where it is none, nothing was put to the test."""


def sampled(
    config: Speculative, target: Decoder, aid: Aid, prompt: Sequence[int], *, new: int = CHECKED_TOKENS
) -> Sampled:
    """All texts of `new` tokens behind a prompt: P of speculation, Q of one token after the other.

    Both are computed, not sampled: every way in which the coins may fall is run.
    """
    length, always = len(prompt) + new, config.model_copy(update={"adaptive": False})
    drafted = 0

    def speculate(text: Text) -> None:
        nonlocal drafted
        proposer = new_draft(always, target, aid, capacity=length)
        check = proposer if isinstance(proposer, Target) else CachedTarget(target, capacity=length)
        for outcome in rounds(check, proposer, text, DraftLength(new - 1, proposer.cost, adaptive=False), CHECKED):
            drafted += outcome.drafted

    def one_by_one(text: Text) -> None:
        reader = CachedTarget(target, capacity=length)
        while not text.ended:
            text.add(text.choose(probabilities(reader.check(text.tokens, [])[0], CHECKED)))

    ours, plain = (_distribution(write, prompt, new) for write in (speculate, one_by_one))
    distance = sum(abs(ours.get(text, 0.0) - plain.get(text, 0.0)) for text in ours.keys() | plain.keys()) / 2
    return Sampled(distance, drafted)


def _distribution(write: Callable[[Text], None], prompt: Sequence[int], new: int) -> dict[tuple[int, ...], float]:
    def algorithm(choose: Choose) -> tuple[int, ...]:
        text = Text(list(prompt), len(prompt), len(prompt) + new, (), choose)
        write(text)
        return tuple(text.tokens[len(prompt) :])

    return outcomes(algorithm)
