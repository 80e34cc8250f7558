"""The words of many texts as numbers: every distinct run of non-space is cut once, every distinct word looked at once.

Letters: D texts, R runs of non-space of all of them, W words, V words that are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.hashing import BASE
from lmopt.data.pieces import pieces
from lmopt.data.punctuation import SYMBOLS
from lmopt.data.words import cut

MAX_RUNS = 1_000_000
"""Known runs; beyond, the table starts afresh before the next texts, so that memory stays bounded."""
RUNS_AT_ONCE = 1 << 18
"""Runs that exist as such before they are numbers."""
_MASK = (1 << 64) - 1


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
        base = len(self._flat.filled)
        facts: list[tuple[int, int, bool, bool]] = []
        for run in self._runs.new:
            for word in cut(run):
                number = self.vocabulary.setdefault(word, len(self.vocabulary))
                if number == len(self._facts.filled) + len(facts):
                    facts.append(_look_at(word))
                flat.append(number)
            ends.append(base + len(flat))
        self._runs.new.clear()
        self._flat.extend(flat)
        self._first_R.extend(ends)
        self._facts.extend(facts)

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

    def extend(self, values: list[object]) -> None:
        needed = self._size + len(values)
        if needed > len(self._room):
            self._room = np.concatenate([self._room, np.zeros(max(needed, 2 * len(self._room)), self._room.dtype)])
        self._room[self._size : needed] = np.array(values, self._room.dtype)
        self._size = needed


def _look_at(word: str) -> tuple[int, int, bool, bool]:
    symbol = SYMBOLS.issuperset(word)
    return _polynomial(word), len(word), symbol, any(map(str.isalpha, word))


def _polynomial(word: str) -> int:
    total, power, base = 0, 1, int(BASE)
    for character in word:
        total += (ord(character) + 1) * power
        power = power * base & _MASK
    return total & _MASK
