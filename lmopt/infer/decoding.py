"""From a description of how to decode to something that writes: one function for every kind.

write = builder(decoding)(decoding, target, aid)
for step in write(prompt, max_new=64): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from lmopt.infer import drafts, lookup
from lmopt.infer.decoder import Decoder
from lmopt.infer.early_exit import ExitRule, generate_early
from lmopt.infer.generate import generate
from lmopt.infer.ngramstore import NgramStore
from lmopt.infer.sequence import Decoded
from lmopt.infer.speculative import Draft, speculate
from lmopt.techniques.decoding import EarlyExit, ExitDraft, LookupDraft, OneByOne, Sampling, Speculative

Aid = Decoder | NgramStore | None
"""What a draft may need beside the target: a smaller model, or a store of other texts."""


class Write(Protocol):
    """Continues one prompt; the first step reads the prompt and adds one token."""

    def __call__(
        self, prompt: Sequence[int], *, max_new: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[Decoded]: ...


def one_by_one(_config: OneByOne, target: Decoder, _aid: Aid = None) -> Write:
    """A token a pass."""

    def write(
        prompt: Sequence[int], *, max_new: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[Decoded]:
        return generate(target, [prompt], max_new=max_new, sampling=sampling, seed=seed)

    return write


def early_exit(config: EarlyExit, target: Decoder, _aid: Aid = None) -> Write:
    """Each token at its own depth.

    Raises:
        ValueError: the threshold is left to be calibrated, or the exits do not fit the model.
    """
    rule = exit_rule(config)
    rule.check(len(target.layers))

    def write(
        prompt: Sequence[int], *, max_new: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[Decoded]:
        return generate_early(target, [prompt], rule, max_new=max_new, sampling=sampling, seed=seed)

    return write


def exit_rule(config: EarlyExit) -> ExitRule:
    """When a token leaves.

    Raises:
        ValueError: the threshold is left to be calibrated.
    """
    if config.threshold is None:
        raise ValueError(
            "the threshold of early exit is not set\nhint: calibrate it (lmopt.infer.calibration), or give it"
        )
    return ExitRule(config.exits, config.threshold, config.measure)


def speculative(config: Speculative, target: Decoder, aid: Aid = None) -> Write:
    """Drafts that the target checks; a new draft for every text, for drafts remember what they have read.

    Args:
        aid: the smaller model, or the store of other texts, where the description names one.

    Raises:
        ValueError: as `new_draft`.
    """
    new_draft(config, target, aid, capacity=1)  # what cannot fit is said before anything is written

    def write(
        prompt: Sequence[int], *, max_new: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[Decoded]:
        room = min(len(prompt) + max_new, target.model.context)
        proposer = new_draft(config, target, aid, capacity=room)
        return speculate(
            target, proposer, prompt, max_new=max_new, draft_tokens=config.draft_tokens, adaptive=config.adaptive,
            sampling=sampling, seed=seed,
        )  # fmt: skip

    return write


def new_draft(config: Speculative, target: Decoder, aid: Aid, *, capacity: int) -> Draft:
    """What proposes tokens for one text of at most `capacity` tokens.

    Raises:
        ValueError: a model shall draft, or a store be looked in, and none is given; the model has another vocabulary;
            or the exit lies beyond the model.
    """
    described = config.draft
    if isinstance(described, LookupDraft):
        store = aid if isinstance(aid, NgramStore) else None
        if described.corpus is not None and store is None:
            raise ValueError("drafts shall be looked up in a corpus, and no store of one was given")
        row_cost = target.row_cost if config.adaptive else None
        return lookup.LookupDraft(target.vocab, described.longest, described.shortest, store=store, row_cost=row_cost)
    if isinstance(described, ExitDraft):
        return drafts.ExitDraft(target, exit_layer=described.layer, capacity=capacity)
    if not isinstance(aid, Decoder):
        raise ValueError(f"the model of {described.arm!r} shall draft, and none was given")
    return drafts.ModelDraft(aid, target, capacity=min(capacity, aid.model.context))
