"""Models that draft: a smaller one, or the target's own first layers. (What is looked up: `lmopt.infer.lookup`.)

Letters: V vocabulary, G drafted tokens, B = 1 sequence, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lmopt.infer.decoder import Decoder
from lmopt.infer.sampling import Choose, largest, probabilities
from lmopt.infer.speculative import CachedTarget, Proposal, rollback
from lmopt.quantities import possible
from lmopt.techniques.decoding import Sampling


def draw(
    following: Callable[[list[int]], Tensor], tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose
) -> Proposal:
    """Draft one token after the other, each from the logits (V) that `following` gives to the text so far."""
    text, rows, vocab = list(tokens), list[Tensor](), 1
    for _ in range(count):
        logits_V = following(text)
        vocab = len(logits_V)
        if sampling.greedy:
            text.append(int(largest(logits_V)))
        else:
            rows.append(probabilities(logits_V, sampling))
            text.append(choose(rows[-1]))
    drafted = text[len(tokens) :]
    return Proposal(drafted, torch.stack(rows) if rows else None, vocab)


class ModelDraft:
    """A smaller model with the target's vocabulary."""

    is_own_judge = False

    def __init__(self, decoder: Decoder, target: Decoder, *, capacity: int | None = None) -> None:
        if decoder.vocab != target.vocab:
            raise ValueError(
                f"the draft knows {decoder.vocab} tokens, the target {target.vocab}\n"
                "hint: draft and target must use the same tokenizer"
            )
        if capacity is None:
            capacity = min(decoder.model.context, target.model.context)
        self.reader = CachedTarget(decoder, capacity=capacity)
        self.cost = decoder.nbytes / target.nbytes

    def propose(self, tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose) -> Proposal:
        """See `lmopt.infer.speculative.Draft`."""
        room = self.reader.cache.capacity - len(tokens) + 1
        return draw(self._following, tokens, min(count, max(room, 0)), sampling, choose)

    def _following(self, tokens: list[int]) -> Tensor:
        return self.reader.check(tokens, [])[0]


class ExitDraft:
    """The target's own first layers, then its head (LayerSkip, arXiv 2404.16710, section 4.3).

    Drafting and checking share one cache and one pass: a check goes on from the states where the drafts left, so the
    first layers are never run twice. It therefore is its own `Target`.
    """

    is_own_judge = False

    def __init__(self, decoder: Decoder, *, exit_layer: int, capacity: int | None = None) -> None:
        if not 1 <= exit_layer < len(decoder.layers):
            raise ValueError(f"exit layer {exit_layer} of a model of {len(decoder.layers)} layers: "
                             f"{possible(1, len(decoder.layers) - 1)}")  # fmt: skip
        self.decoder, self.exit_layer = decoder, exit_layer
        self.cache = decoder.new_cache(batch=1, capacity=capacity or decoder.model.context)
        self.read: list[int] = []
        """Tokens that the whole model has read."""
        self.early: list[int] = []
        """Tokens behind these that only the first layers have read."""
        self.states_BTD = decoder.embed(torch.zeros(1, 0, dtype=torch.int64, device=decoder.device))
        """Their states behind the exit layer."""
        head = decoder.vocab * decoder.model.width
        weights = sum(layer.parameters for layer in decoder.layers)
        first = sum(layer.parameters for layer in decoder.layers[:exit_layer])
        self.cost = (first + head) / (weights + head)

    def propose(self, tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose) -> Proposal:
        """See `lmopt.infer.speculative.Draft`."""
        return draw(self._following, tokens, count, sampling, choose)

    def check(self, tokens: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """See `lmopt.infer.speculative.Target`."""
        everything = [*tokens, *drafted]
        self._read_early(everything, behind=len(tokens))
        x_BTD = self.decoder.run(self.states_BTD, self.cache, first=self.exit_layer)
        self.cache.advance([x_BTD.shape[1]])
        self.read, self.early, self.states_BTD = everything, [], self.states_BTD[:, :0]
        return self.decoder.logits(self.decoder.norm(x_BTD[0, -len(drafted) - 1 :]))

    def _following(self, tokens: list[int]) -> Tensor:
        self._read_early(tokens, behind=len(tokens))
        return self.decoder.logits(self.decoder.norm(self.states_BTD[0, -1]))

    def _read_early(self, tokens: Sequence[int], *, behind: int) -> None:
        """Run the first layers on what they have not read; `behind`: the first token whose logits are wanted."""
        if self.read != list(tokens[: len(self.read)]) or len(self.read) >= behind:
            rollback(self.cache, self.read, tokens[:behind])
            self.early, self.states_BTD = [], self.states_BTD[:, :0]
        ahead = list(tokens[len(self.read) :])
        agreed = min(len(self.early), len(ahead))
        if self.early[:agreed] != ahead[:agreed]:
            agreed = 0
        self.states_BTD = self.states_BTD[:, :agreed]
        fresh = ahead[agreed:]
        if fresh:
            x_BTD = self.decoder.embed(torch.tensor([fresh], device=self.decoder.device))
            x_BTD = self.decoder.run(x_BTD, self.cache, last=self.exit_layer, ahead=agreed)
            self.states_BTD = torch.cat([self.states_BTD, x_BTD], 1)
        self.early = ahead
