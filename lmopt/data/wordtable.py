"""The words of many texts as numbers: every distinct run of non-space is cut once, every distinct word looked at once.

Letters: D texts, R runs of non-space of all of them, W words, V words that are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.hashing import powers
from lmopt.data.pieces import pieces
from lmopt.data.punctuation import SYMBOLS
from lmopt.data.words import cut

MAX_RUNS = 1_000_000
"""Known runs; beyond, the table starts afresh before the next texts, so that memory stays bounded."""
RUNS_AT_ONCE = 1 << 18
"""Runs that exist as such before they are numbers."""


class Words(NamedTuple):
    """The words of D texts, one text after the other."""

    ids_W: NDArray[np.int32]
    """Numbers of the words in the table that cut them."""
    offsets: NDArray[np.int64]
    """D + 1 positions: text d has ids_W[offsets[d] : offsets[d + 1]]."""


class WordTable:
    """Run -> its words, word -> its facts; both computed when first met."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self._runs = _Numbers()
        self._first_R = _Column(np.int64)
        self._flat = _Column(np.int32)
        self._facts = _Column(_FACTS)

    def words(self, texts: Iterable[str]) -> Words:
        """Cut texts into words."""
        if len(self._runs) > MAX_RUNS:
            self._forget()
        parts: list[NDArray[np.int32]] = []
        offsets = [np.zeros(1, np.int64)]
        for runs, ends in _groups(texts):
            offsets_R, ids_W = self._cut(runs)
            offsets.append(offsets_R[ends] + sum(map(len, parts)))
            parts.append(ids_W)
        return Words(np.concatenate(parts), np.concatenate(offsets))

    def _cut(self, runs: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(words before each run and those of all, numbers of the words)."""
        run_R = np.fromiter(map(self._runs.__getitem__, runs), np.int64, len(runs))
        self._learn()
        first = self._first_R.filled
        count_R = first[run_R + 1] - first[run_R]
        end_R = np.concatenate([[0], np.cumsum(count_R)])
        place_W = np.arange(end_R[-1]) + np.repeat(first[run_R] - end_R[:-1], count_R)
        return end_R, self._flat.filled[place_W]

    def _learn(self) -> None:
        """Cut the runs that were met for the first time, and look at the words that are new with them."""
        if not len(self._first_R.filled):
            self._first_R.extend([0])
        if not self._runs.new:
            return
        flat: list[int] = []
        ends: list[int] = []
        base, known = len(self._flat.filled), len(self.vocabulary)
        for run in self._runs.new:
            flat += [self.vocabulary.setdefault(word, len(self.vocabulary)) for word in cut(run)]
            ends.append(base + len(flat))
        self._runs.new.clear()
        self._flat.extend(flat)
        self._first_R.extend(ends)
        self._facts.extend(_look_at(list(islice(self.vocabulary, known, None))))

    @property
    def hash_V(self) -> NDArray[np.uint64]:
        """Polynomial hash of the characters of each known word (`lmopt.data.hashing`)."""
        return self._facts.filled["hash"]

    @property
    def length_V(self) -> NDArray[np.int32]:
        """Characters of each known word."""
        return self._facts.filled["length"]

    @property
    def symbol_V(self) -> NDArray[np.bool_]:
        """Whether a word is nothing but punctuation."""
        return self._facts.filled["symbol"]

    @property
    def letter_V(self) -> NDArray[np.bool_]:
        """Whether a word has a letter."""
        return self._facts.filled["letter"]


def _groups(texts: Iterable[str]) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
    """(runs, how many of them stand before each end of a text that falls among them), a bounded number at a time."""
    runs: list[str] = []
    ends: list[int] = []
    for text in texts:
        for piece in pieces(text):
            if len(runs) >= RUNS_AT_ONCE:
                yield runs, np.array(ends, np.int64)
                runs, ends = [], []
            runs += piece.split()
        ends.append(len(runs))
    yield runs, np.array(ends, np.int64)


_FACTS = np.dtype([("hash", np.uint64), ("length", np.int32), ("symbol", np.bool_), ("letter", np.bool_)])


class _Numbers(dict[str, int]):
    """Run -> number in the order of first sight."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, run: str) -> int:
        number = self[run] = len(self)
        self.new.append(run)
        return number


class _Column:
    """An array that grows at its end."""

    def __init__(self, kind: np.typing.DTypeLike) -> None:
        self._room = np.zeros(1024, kind)
        self._size = 0

    @property
    def filled(self) -> NDArray[np.generic]:
        return self._room[: self._size]

    def extend(self, values: Sequence[object] | NDArray[np.generic]) -> None:
        needed = self._size + len(values)
        if needed > len(self._room):
            self._room = np.concatenate([self._room, np.zeros(max(needed, 2 * len(self._room)), self._room.dtype)])
        self._room[self._size : needed] = values
        self._size = needed


def _look_at(words: list[str]) -> NDArray[np.void]:
    """What the filters want to know of each word."""
    facts = np.zeros(len(words), _FACTS)
    facts["length"] = list(map(len, words))
    facts["hash"] = _polynomials(words, facts["length"])
    facts["letter"] = [word.isalpha() or any(map(str.isalpha, word)) for word in words]
    facts["symbol"] = [not word.isalpha() and SYMBOLS.issuperset(word) for word in words]
    return facts


def _polynomials(words: list[str], length_V: NDArray[np.int32]) -> NDArray[np.uint64]:
    """sum_k (c_k + 1) BASE^k over the characters c of each word, mod 2^64."""
    codes_C = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32)
    end_V = np.concatenate([[0], np.cumsum(length_V, dtype=np.int64)])
    place_C = np.arange(len(codes_C)) - np.repeat(end_V[:-1], length_V)
    terms_C = (codes_C + np.uint64(1)) * powers(int(length_V.max(initial=0)))[place_C]
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms_C)])
    return np.diff(before[end_V])
