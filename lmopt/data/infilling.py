"""Text infilling: spans of a text are cut out and filled anew by a causal model that sees both sides.

Spans are T5's (Raffel et al., arXiv 1910.10683: 15% of the words, 3 a span on average). What stands before a gap is
continued several times; the continuation behind which the text goes on likeliest is taken. A gap keeps the number of
tokens that it had. Every gap is filled with the original text around it, so gaps do not depend on each other.

Letters: see lmopt/data/continuation.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lmopt.data import reference, smollm
from lmopt.data.augmentation import augment
from lmopt.data.continuation import fill
from lmopt.data.documents import Document, Dropped, Spent, normalised
from lmopt.techniques.infilling import Infilling, PackagedModel

GAPS_AT_A_TIME = 16
MOST_TOKENS = 24
"""A longer gap is left as it was: what fills it would be a story of its own."""
CHARACTERS_PER_TOKEN = 8
"""More text than this in front of a gap cannot matter."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Gap:
    """A span to be filled. It begins with the white space before its first word, and so does what fills it."""

    start: int
    end: int
    """Characters of the text, the white space before the first word included."""
    prefix: tuple[int, ...]
    tokens: int
    suffix: tuple[int, ...]


def build(config: Infilling, documents: Iterable[Document]) -> Iterator[Document | Dropped | Spent]:
    """The documents, then those of under-represented domains with some of their spans filled anew.

    Raises:
        DataError: the packaged model's reader is absent; said when it is first needed.
    """
    return augment(config, documents, Infiller(config))


class Infiller:
    """Fills texts with one model."""

    def __init__(self, config: Infilling) -> None:
        self._config = config
        kind = smollm.SOURCE if isinstance(config.model, PackagedModel) else "a model trained here"
        self.name = f"infilling by {kind}"
        self.learns = not isinstance(config.model, PackagedModel)
        knobs = ("model", "share", "mean_words", "candidates", "before", "after", "temperature", "top_p", "seed")
        self.settings: Mapping[str, Any] = {"kind": "infilling", **config.model_dump(mode="json", include=set(knobs))}
        self._model: Any = None
        self._words: Any = None
        self._spaced_V: Any = None

    def prepare(self, documents: Iterator[Document]) -> float:
        """Load the packaged model, or train a small one on the documents: FLOPs of that."""
        flops = 0.0
        if isinstance(self._config.model, PackagedModel):
            self._model, self._words = smollm.load()
        else:
            trained = reference.train(self._config.model, documents, seed=self._config.seed)
            self._model, self._words, flops = trained.model, trained.words, trained.train_flops
        vocab = range(self._words.get_vocab_size())
        self._spaced_V = torch.tensor([self._words.decode([token])[:1].isspace() for token in vocab])
        return flops

    def make(self, texts: list[str]) -> list[tuple[str, float]]:
        """(text with its gaps filled, FLOPs) of each; one text at a time, so that none depends on its neighbours."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> tuple[str, float]:
        digest = hashlib.blake2b(f"{self._config.seed}\0{text}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        chance = torch.Generator().manual_seed(number % 2**63)
        fills: dict[Gap, str] = {}
        flops = 0.0
        for alike in _grouped(gaps(text, self._config, self._words, np.random.default_rng(number))):
            filled, spent = self._fill(text, alike, chance)
            fills |= filled
            flops += spent
        return _replaced(text, fills), flops

    def _fill(self, text: str, alike: list[Gap], chance: torch.Generator) -> tuple[dict[Gap, str], float]:
        """Gaps with as many tokens before, in and behind them: the best acceptable candidate of each."""
        config, rows = self._config, len(alike) * self._config.candidates
        tokens_GKM, score_GK = fill(
            self._model,
            torch.tensor([gap.prefix for gap in alike]),
            alike[0].tokens,
            torch.tensor([gap.suffix for gap in alike], dtype=torch.int64),
            candidates=config.candidates,
            temperature=config.temperature,
            top_p=config.top_p,
            chance=chance,
            first_V=self._spaced_V,
        )
        found: dict[Gap, str] = {}
        for gap, tokens_KM, score_K in zip(alike, tokens_GKM.tolist(), score_GK, strict=True):
            for candidate in score_K.argsort(descending=True, stable=True).tolist():
                made = self._words.decode(tokens_KM[candidate])
                if acceptable(made, text[gap.start : gap.end]):
                    found[gap] = made
                    break
        read = len(alike) * len(alike[0].prefix) + rows * (alike[0].tokens + len(alike[0].suffix))
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        return found, 2.0 * parameters * read


def gaps(text: str, config: Infilling, words: Tokenizer, rng: np.random.Generator) -> list[Gap]:
    """The spans that are cut out of a text, in order, with the tokens around them."""
    places = [found.span() for found in _WORD.finditer(text)]
    cut: list[Gap] = []
    for first, last in spans(len(places), config.share, config.mean_words, rng):
        start, end = places[first - 1][1], places[last - 1][1]
        near = text[max(0, start - CHARACTERS_PER_TOKEN * config.before) : start]
        prefix = words.encode(near).ids[-config.before :]
        suffix = words.encode(text[end : end + CHARACTERS_PER_TOKEN * config.after]).ids[: config.after]
        tokens = len(words.encode(text[start:end]).ids)
        if prefix and 0 < tokens <= MOST_TOKENS:
            cut.append(Gap(start, end, tuple(prefix), tokens, tuple(suffix)))
    return cut


def spans(n: int, share: float, mean: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """T5's random spans of n words: [first, last) of each; about share x n words in all, `mean` a span.

    A text begins and ends with words that stay.
    """
    noise = round(n * share)
    count = min(max(round(noise / mean), 1), n - noise - 1)
    if noise < 1 or count < 1:
        return []
    cut = _partition(noise, count, rng)
    kept = _partition(n - noise, count + 1, rng)
    found, at = [], 0
    for stays, goes in zip(kept, cut, strict=False):
        found.append((at + stays, at + stays + goes))
        at += stays + goes
    return found


def _partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Positive numbers that add up to the total, every way equally likely."""
    edges = np.sort(rng.choice(total - 1, min(parts, total) - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], edges, [total]])).tolist()


def acceptable(made: str, original: str) -> bool:
    """Whether a candidate may stand in a gap: words, other ones, whole characters, no line that was not there."""
    if not made.strip() or made[:1].isspace() != original[:1].isspace() or "\ufffd" in made:
        return False
    return ("\n" in original or "\n" not in made) and normalised(made) != normalised(original)


def _grouped(found: list[Gap]) -> Iterator[list[Gap]]:
    """Gaps that can be filled at once: with equally many tokens before, in and behind them."""
    alike: dict[tuple[int, int, int], list[Gap]] = {}
    for gap in found:
        alike.setdefault((len(gap.prefix), gap.tokens, len(gap.suffix)), []).append(gap)
    for group in alike.values():
        for start in range(0, len(group), GAPS_AT_A_TIME):
            yield group[start : start + GAPS_AT_A_TIME]


def _replaced(text: str, fills: dict[Gap, str]) -> str:
    pieces: list[str] = []
    at = 0
    for gap in sorted(fills, key=lambda gap: gap.start):
        pieces += (text[at : gap.start], fills[gap])
        at = gap.end
    return "".join((*pieces, text[at:]))
