"""Speculative sampling: a cheap draft proposes tokens, the target checks them all in one pass, nothing is lost.

Leviathan et al. (arXiv 2211.17192, algorithm 1) and Chen et al. (2302.01318): a drafted token x ~ q is kept with
probability min(1, p(x)/q(x)); the first that is not is replaced by one drawn from norm(max(0, p - q)); when all are
kept, a bonus token is drawn from p. What comes out is distributed as p, whatever the draft: proven by enumeration
(lmopt.infer.outcomes) through this very code. The same temperature, top-k and top-p shape p and q.

It lowers latency, never FLOPs: see `lmopt.cost_decoding.written_flops`. Letters: V vocabulary, G drafted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.infer.cache import KvCache
from lmopt.infer.decoder import Decoder
from lmopt.infer.sampling import Choose, largest, probabilities
from lmopt.infer.sequence import Decoded, Stops, Text, begin
from lmopt.techniques.decoding import Sampling

ACCEPTANCE_MEMORY = 0.9
"""Weight of the past in the running estimate of how often a drafted token is kept: about ten tokens count."""
FIRST_ACCEPTANCE = 0.7
"""The estimate before anything was drafted."""


@dataclass(frozen=True)
class Proposal:
    """Tokens a draft puts forward, and the probabilities it drew them from."""

    tokens: list[int]
    drawn_GV: Tensor | None = None
    """Row i: what token i was drawn from, after the transforms. None: without chance, all probability at the token."""
    vocab: int = 0
    """Number of token ids, where nothing was drawn."""

    @cached_property
    def q_GV(self) -> Tensor:
        """Row i: the probabilities of token i. A check of greedy text asks for none."""
        if self.drawn_GV is not None:
            return self.drawn_GV
        return functional.one_hot(torch.tensor(self.tokens, dtype=torch.int64), self.vocab).float()


class Draft(Protocol):
    """Something that proposes tokens."""

    cost: float
    """Time of drafting one token as a share of the target's time for one (c of 2211.17192)."""
    is_own_judge: bool
    """Whether it proposes fewer tokens by itself where that is faster: it knows more of each than a running share."""

    def propose(self, tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose) -> Proposal:
        """Up to `count` tokens to follow `tokens`; fewer, or none, where it has nothing to say."""
        ...


@runtime_checkable
class Target(Protocol):
    """What is asked of the model whose distribution shall come out."""

    def check(self, tokens: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """Logits (G+1) x V of what follows `tokens`, `tokens` and the first drafted one, and so on."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """One call of the target."""

    tokens: list[int]
    """What it added: the drafted tokens that were kept, and one more."""
    drafted: int
    kept: int


def play(target: Target, draft: Draft, tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose) -> Round:
    """Draft up to `count` tokens, check them, keep what the rule keeps."""
    proposal = draft.propose(tokens, count, sampling, choose)
    logits_GV = target.check(tokens, proposal.tokens)
    if sampling.greedy:
        kept, last = agree(proposal.tokens, logits_GV)
    else:
        kept, last = accept(proposal, probabilities(logits_GV, sampling), choose)
    return Round([*proposal.tokens[:kept], last], len(proposal.tokens), kept)


def agree(drafted: Sequence[int], logits_GV: Tensor) -> tuple[int, int]:
    """The rule where the target puts all probability on its likeliest token: how many drafted tokens are that, and
    the token after them. Whatever they were drawn from, p(x)/q(x) is 0 for any other, and the residual is p.
    """
    likeliest: list[int] = largest(logits_GV).tolist()
    kept = next((i for i, token in enumerate(drafted) if token != likeliest[i]), len(drafted))
    return kept, likeliest[kept]


def accept(proposal: Proposal, p_GV: Tensor, choose: Choose) -> tuple[int, int]:
    """The rule: how many drafted tokens stay, and the token after them.

    Args:
        p_GV: the target's probabilities, one row more than tokens were drafted.
    """
    for number, token in enumerate(proposal.tokens):
        p_V, q_V = p_GV[number], proposal.q_GV[number].to(p_GV.device)
        if not keeps(p_V[token], q_V[token], choose):
            return number, choose(residual(p_V, q_V))
    return len(proposal.tokens), choose(p_GV[len(proposal.tokens)])


def keeps(p: Tensor, q: Tensor, choose: Choose) -> bool:
    """Whether a token of target probability p that was drawn with probability q stays: with min(1, p/q)."""
    share = float((p / q).clamp(max=1.0))
    if share in (0.0, 1.0):
        return share == 1.0
    return choose(torch.tensor([1 - share, share], dtype=torch.float64)) == 1


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """norm(max(0, p - q)): what is left of p where q gave too little."""
    rest_V = (p_V - q_V).clamp_(min=0.0)
    total = rest_V.sum()
    # p = q but for rounding: nothing would ever be refused, and either distribution is right
    return rest_V / total if total > 0 else p_V


class DraftLength:
    """How many tokens to draft, from how often they were kept so far: the length with the most tokens a unit of time.

    With a share a of drafted tokens kept, g drafts give (1 - a^(g+1))/(1 - a) tokens in the time of g c + 1
    (2211.17192, theorem 3.8; here c holds what one more token takes to check, too). It depends on finished tokens only
    and never on a clock, so what comes out keeps its distribution, and a seed its text.
    """

    def __init__(self, longest: int, cost: float, adaptive: bool = True) -> None:
        self.longest, self.cost, self.adaptive = longest, cost, adaptive
        self.acceptance = FIRST_ACCEPTANCE

    def next(self) -> int:
        """Tokens to draft now; at least one, so that the estimate goes on learning."""
        if not self.adaptive:
            return self.longest
        return max(range(1, self.longest + 1), key=self.speed)

    def speed(self, count: int) -> float:
        """Expected tokens a unit of the target's time when `count` are drafted."""
        expected = sum(self.acceptance**kept for kept in range(count + 1))
        return expected / (count * self.cost + 1)

    def learn(self, outcome: Round) -> None:
        """Take in what became of the drafted tokens: those kept, and the one refused."""
        for number in range(min(outcome.kept + 1, outcome.drafted)):
            kept = float(number < outcome.kept)
            self.acceptance = ACCEPTANCE_MEMORY * self.acceptance + (1 - ACCEPTANCE_MEMORY) * kept


def rounds(target: Target, draft: Draft, text: Text, lengths: DraftLength, sampling: Sampling) -> Iterator[Round]:
    """Write a text to its end; the first round only reads the prompt and drafts nothing."""
    count = 0
    while not text.ended:
        outcome = play(target, draft, text.tokens, min(count, text.room - 1), sampling, text.choose)
        for token in outcome.tokens:
            text.add(token)
        yield outcome
        lengths.learn(outcome)
        count = lengths.next()


def speculate(
    target: Decoder,
    draft: Draft,
    prompt: Sequence[int],
    *,
    max_new: int,
    draft_tokens: int = 4,
    adaptive: bool = True,
    sampling: Sampling | None = None,
    stops: Stops = (),
    seed: int = 0,
) -> Iterator[Decoded]:
    """Continue one prompt; distributed as `generate` would, and token for token the same where it is greedy.

    The first step reads the prompt and yields one token, as `generate` does. Every further one is a call of the
    target; its notes say how many tokens were `drafted` and `kept`.

    Args:
        draft: where it is also a `Target` (one model that drafts and checks), it checks its own drafts.
        draft_tokens: tokens drafted at most before a check.
        adaptive: choose fewer where that is faster (`DraftLength`), unless the draft itself does.

    Raises:
        PromptTooLong, ValueError: as `lmopt.infer.sequence.begin`, at the first step; also where nothing shall be
            drafted, or the draft would check for another model.
    """
    if draft_tokens < 1:
        raise ValueError(f"draft_tokens is {draft_tokens}: at least one is drafted before a check")
    if isinstance(draft, Target) and getattr(draft, "decoder", target) is not target:
        raise ValueError(
            "the draft is another model's own layers and would check for that model\n"
            "hint: make it from the decoder that is the target"
        )
    (text,) = begin(target, [prompt], max_new=max_new, stops=stops, seed=seed)
    check = draft if isinstance(draft, Target) else CachedTarget(target, capacity=text.longest)
    lengths = DraftLength(draft_tokens, draft.cost + target.row_cost, adaptive and not draft.is_own_judge)
    for number, outcome in enumerate(rounds(check, draft, text, lengths, sampling or Sampling())):
        notes = {"drafted": outcome.drafted, "kept": outcome.kept} if number else {"prompt_tokens": text.prompt}
        added = text.take()
        yield Decoded(index=number + 1, tokens=len(added), notes=notes, added=(added,))


class CachedTarget:
    """A decoder that reads each token once: what the rule refused is rolled back, what it kept stays read."""

    def __init__(self, decoder: Decoder, *, capacity: int) -> None:
        self.decoder = decoder
        self.cache = decoder.new_cache(batch=1, capacity=capacity)
        self.read: list[int] = []
        """Tokens in the cache."""

    def check(self, tokens: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """See `Target`."""
        everything = [*tokens, *drafted]
        agreed = rollback(self.cache, self.read, tokens)
        fresh = everything[agreed:]
        states_BTD = self.decoder.extend(torch.tensor([fresh], device=self.decoder.device), self.cache)
        self.read = everything
        return self.decoder.logits(states_BTD[0, -len(drafted) - 1 :])


def rollback(cache: KvCache, read: list[int], tokens: Sequence[int]) -> int:
    """Take a cache back to where what it `read` agrees with `tokens`; the last of these is always read again.

    Returns:
        How many tokens the cache now counts.
    """
    limit = min(len(read), len(tokens) - 1)
    same = read[:limit] == list(tokens[:limit])
    agreed = limit if same else next(i for i in range(limit) if read[i] != tokens[i])
    cache.rollback([agreed])
    del read[agreed:]
    return agreed
