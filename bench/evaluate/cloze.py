"""A cloze set derived from held-out text: which of four about equally frequent words comes next.

Only frequent words are asked for and offered, so that most are one token of a small vocabulary and knowing how common
a word is does not help: the distractors' frequency ranks lie within `BAND` of the answer's. All items of a passage
continue prefixes of the same text, which lets them share almost all computation.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from bench.evaluate.sets import Item

FREQUENT_WORDS = 1_000
"""Answers and distractors are among this many commonest words of the held-out text."""
BAND = 40
"""Distractors come from this many ranks above and below the answer's."""
CHOICES = 4
PASSAGE_WORDS = 60
"""Documents are cut into passages of this many words; a context never crosses a cut."""
FIRST_WORD = 12
"""Words of context before the first question of a passage."""
MIN_LETTERS = 2
MIN_COUNT = 3
"""A frequent word occurs at least this often."""

_WORD = re.compile(rf"(?<= )[a-z]{{{MIN_LETTERS},}}(?=[ ,.;:!?\n])")
_SPACED = re.compile(r"\S+")


def generate(documents: Iterable[tuple[str, str]], *, seed: int, items: int) -> list[Item]:
    """At most `items` questions from (id, text) pairs, passage by passage in a shuffled order that the seed fixes.

    Returns fewer, down to none, where the text is small.
    """
    texts = sorted(documents)
    ranked = _frequent(text for _, text in texts)
    rank = {word: position for position, word in enumerate(ranked)}
    passages = [passage for document, text in texts for passage in _passages(document, text)]
    _rng(seed, "passages").shuffle(passages)
    questions = (
        _question(document, start, text, match, ranked, rank, seed)
        for document, start, text in passages
        for match in _askable(text, rank)
    )
    return list(itertools.islice(questions, items))


def _frequent(texts: Iterable[str]) -> list[str]:
    counts = collections.Counter(match[0] for text in texts for match in _WORD.finditer(text))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:FREQUENT_WORDS]
    return [word for word, count in ranked if count >= MIN_COUNT]


def _passages(document: str, text: str) -> Iterator[tuple[str, int, str]]:
    """(document, first character, passage): pieces of `PASSAGE_WORDS` words, the last one as short as it comes."""
    words = list(_SPACED.finditer(text))
    for first in range(0, len(words), PASSAGE_WORDS):
        piece = words[first : first + PASSAGE_WORDS]
        yield document, piece[0].start(), text[piece[0].start() : piece[-1].end()]


def _askable(text: str, rank: dict[str, int]) -> Iterator[re.Match[str]]:
    """Every other frequent word that has enough context before it."""
    words = list(_SPACED.finditer(text))
    if len(words) <= FIRST_WORD or len(rank) < CHOICES:
        return
    earliest = words[FIRST_WORD].start()
    found = (match for match in _WORD.finditer(text) if match.start() >= earliest and match[0] in rank)
    yield from itertools.islice(found, 0, None, 2)


def _question(
    document: str, start: int, text: str, match: re.Match[str], ranked: Sequence[str], rank: dict[str, int], seed: int
) -> Item:
    answer, name = match[0], f"{document}:{start + match.start()}"
    position = rank[answer]
    near = [word for word in ranked[max(0, position - BAND) : position + BAND + 1] if word != answer]
    rng = _rng(seed, name)
    choices = [answer, *rng.sample(near, CHOICES - 1)]
    rng.shuffle(choices)
    return Item(name, document, text[: match.start()].rstrip(), tuple(choices), choices.index(answer))


def _rng(seed: int, name: str) -> random.Random:
    return random.Random(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest())
