"""Drafts that no model makes: what followed the same last tokens earlier in this text, or in a store of other texts.

Looking up costs next to nothing, checking does (`lmopt.infer.decoder.Decoder.row_cost`): so a draft goes on as long as
its tokens are likely enough to be kept. How likely is learnt while the text is written, from finished tokens alone and
never from a clock, so that what comes out keeps its distribution, and a seed its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lmopt.infer.ngramstore import NgramStore
from lmopt.infer.sampling import Choose
from lmopt.infer.speculative import ACCEPTANCE_MEMORY, Proposal
from lmopt.techniques.decoding import Sampling

KEPT_AT_FIRST = (0.3, 0.55, 0.7, 0.8)
"""Share of tokens that are expected to be kept behind matches of 1, 2, 3, and more tokens of the same text, before any
was checked: about what code and manuals keep."""
SUREST = 0.98
"""No draft is expected to be kept more often than this."""
LEAST_TRUST = 0.1
"""A store's guesses count for this share of what it expects at least: at nothing they would never be tried again."""
HOPELESS = 0.03
"""A chain of drafts that arrives here with less than this probability ends."""


class _Looked(NamedTuple):
    """A token that was looked up."""

    token: int
    likely: float
    """Expected share of such tokens that are kept."""
    size: int
    """Tokens that agreed."""
    share: float | None
    """What the store says; None where it is from the text itself."""


class LookupDraft:
    """What followed the same last tokens: in this text (prompt lookup; Saxena 2023), or in a store (2311.08252).

    Every token is looked up anew behind those drafted before it, in both; of two the likelier is taken.

    Args:
        vocab: number of token ids.
        longest, shortest: tokens that agree, at most and at least; the longest match counts.
        store: other texts; None looks in this one only.
        row_cost: what one more token takes to check, as a share of a pass over one. A draft then ends where more
            tokens are not expected to make the text faster; None drafts as many as are asked for.

    Raises:
        ValueError: the sizes do not fit.
    """

    cost = 0.0

    def __init__(
        self,
        vocab: int,
        longest: int = 3,
        shortest: int = 1,
        *,
        store: NgramStore | None = None,
        row_cost: float | None = None,
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 <= shortest <= longest is needed")
        self.vocab, self.longest, self.shortest = vocab, longest, shortest
        self.store, self.row_cost = store, row_cost
        self.is_own_judge = row_cost is not None
        self._forget()

    def propose(self, tokens: Sequence[int], count: int, sampling: Sampling, choose: Choose) -> Proposal:  # noqa: ARG002
        """Each token is proposed with certainty: it stays with the target's own probability for it."""
        found: list[int] = []
        if count:
            self._read(tokens)
            self._pending = self._worth(self._chain(tokens, count))
            found = [one.token for one in self._pending]
        return Proposal(found, vocab=self.vocab)

    # --- looking up ------------------------------------------------------------------------------

    def _chain(self, tokens: Sequence[int], count: int) -> list[_Looked]:
        """Up to `count` tokens, each behind those before it."""
        reach = max(self.longest, self.store.longest if self.store else 0)
        end, found, probability = list(tokens[-reach:]), list[_Looked](), 1.0
        while len(found) < count and (self.row_cost is None or probability >= HOPELESS):
            likeliest = max(self._from_text(end), self._from_store(end), key=lambda one: one.likely if one else -1.0)
            if likeliest is None:
                break
            found.append(likeliest)
            end.append(likeliest.token)
            probability *= likeliest.likely
        return found

    def _from_text(self, end: list[int]) -> _Looked | None:
        for size in range(min(self.longest, len(end)), self.shortest - 1, -1):
            token = self._following.get(tuple(end[-size:]))
            if token is not None:
                return _Looked(token, self._kept[min(size, len(self._kept)) - 1], size, None)
        return None

    def _from_store(self, end: list[int]) -> _Looked | None:
        guess = self.store.guess(end) if self.store is not None else None
        if guess is None or guess.size < self.shortest:
            return None
        return _Looked(guess.token, min(guess.share * self._trust[guess.size - 1], SUREST), guess.size, guess.share)

    def _worth(self, chain: list[_Looked]) -> list[_Looked]:
        """The first of these tokens, as many as make the most tokens a unit of the target's time."""
        if self.row_cost is None:
            return chain
        best, speed, expected, probability = 0, 1.0, 1.0, 1.0
        for count, one in enumerate(chain, 1):
            probability *= one.likely
            expected += probability
            if expected / (1 + count * self.row_cost) > speed:
                best, speed = count, expected / (1 + count * self.row_cost)
        return chain[:best]

    # --- what it knows of the text ---------------------------------------------------------------

    def _forget(self) -> None:
        self._text: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}
        """n-gram -> what followed its latest occurrence that something follows."""
        self._pending: list[_Looked] = []
        """The last draft, of which it is not yet known what was kept."""
        self._kept = list(KEPT_AT_FIRST)
        self._trust = [1.0] * (self.store.longest if self.store is not None else 0)
        """By size, how often tokens of the store are kept in this text over how often the store expects it."""

    def _read(self, tokens: Sequence[int]) -> None:
        """Learn from what became of the last draft, and note every n-gram that ends before the last token."""
        if len(tokens) <= len(self._text) or list(tokens[: len(self._text)]) != self._text:
            self._forget()
        known = len(self._text)
        self._learn(tokens[known:])
        for end in range(max(known, 1), len(tokens)):
            for size in range(self.shortest, min(self.longest, end) + 1):
                self._following[tuple(tokens[end - size : end])] = tokens[end]
        self._text = list(tokens)

    def _learn(self, came: Sequence[int]) -> None:
        """Those of the last draft that were kept, and the first that was not."""
        for one, token in zip(self._pending, came, strict=False):
            gain = (1 - ACCEPTANCE_MEMORY) * ((one.token == token) - one.likely)
            if one.share is None:
                self._kept[min(one.size, len(self._kept)) - 1] += gain
            else:
                self._trust[one.size - 1] = max(self._trust[one.size - 1] + gain, LEAST_TRUST)
            if one.token != token:
                break
        self._pending = []
