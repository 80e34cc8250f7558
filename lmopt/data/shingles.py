"""Word n-grams of documents as numbers: each word is hashed once, n-grams are rolled from the words' hashes.

Letters: D documents of a batch, S shingles of all of them, one document after the other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.hashing import BLOCK, mix_in_place
from lmopt.data.pieces import pieces

MAX_KNOWN_WORDS = 1_000_000
"""Hashed words that are remembered; beyond, the table starts afresh so that memory stays bounded."""
WORDS_AT_ONCE = 1 << 18
"""Words that exist as such before they are hashed."""
_WORD = re.compile(r"\w+")
_ASCII_WORDS = bytes(c if chr(c).isalnum() or chr(c) == "_" else 0x20 for c in range(128)) + bytes(range(128, 256))


class Shingles(NamedTuple):
    """The n-grams of D documents."""

    hashes_S: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    """D + 1 positions: document d has hashes_S[offsets[d] : offsets[d + 1]], which may be none."""

    def of(self, document: int) -> NDArray[np.uint32]:
        """One document's n-grams, repeats included, in reading order."""
        return self.hashes_S[self.offsets[document] : self.offsets[document + 1]]


class Shingles64(NamedTuple):
    """The n-grams of D documents, in hashes that stay apart in a large corpus."""

    hashes_S: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    """As in `Shingles`."""

    def of(self, document: int) -> NDArray[np.uint64]:
        """One document's n-grams, repeats included, in reading order."""
        return self.hashes_S[self.offsets[document] : self.offsets[document + 1]]


class WordHashes(dict[bytes, int]):
    """Word -> 64-bit hash, computed when a word is first met."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= MAX_KNOWN_WORDS:
            self.clear()
            self[b""] = 0
        value = self[word] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little") if word else 0
        return value


def words(text: str) -> list[bytes]:
    r"""Case-folded runs of letters, digits and underscores (`\w+`), in UTF-8."""
    folded = text.casefold()
    if folded.isascii():
        return folded.encode().translate(_ASCII_WORDS).split()
    return " ".join(_WORD.findall(folded)).encode("utf-8", "surrogatepass").split()


class HashedWords(NamedTuple):
    """The words of D texts as hashes, one text after the other."""

    hash_W: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    """D + 1 positions: text d has hash_W[offsets[d] : offsets[d + 1]]."""


def hash_words(texts: Iterable[str], table: WordHashes) -> HashedWords:
    """Each word of each text as a 64-bit hash."""
    return _hash_cut(texts, table, words)


def hash_runs(texts: Iterable[str], table: WordHashes) -> HashedWords:
    """The same of runs of non-space, as they are written."""
    return _hash_cut(texts, table, _runs)


def _runs(text: str) -> list[bytes]:
    return " ".join(text.split()).encode("utf-8", "surrogatepass").split()


def _hash_cut(texts: Iterable[str], table: WordHashes, cut: Callable[[str], list[bytes]]) -> HashedWords:
    hashes = _Hashes(table)
    ends = [0]
    for text in texts:
        for piece in pieces(text):
            hashes.add(cut(piece))
        ends.append(len(hashes))
    return HashedWords(hashes.all(), np.array(ends, np.int64))


class _Hashes:
    """The hashes of words that come in lists; no more than a piece of a text exists as words."""

    def __init__(self, table: WordHashes) -> None:
        self._table = table
        self._flat: list[bytes] = []
        self._done: list[NDArray[np.uint64]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size + len(self._flat)

    def add(self, found: list[bytes]) -> None:
        """Words behind those that were added before."""
        self._flat += found
        if len(self._flat) >= WORDS_AT_ONCE:
            self._hash()

    def _hash(self) -> None:
        self._done.append(np.fromiter(map(self._table.__getitem__, self._flat), np.uint64, len(self._flat)))
        self._size += len(self._flat)
        self._flat.clear()

    def all(self) -> NDArray[np.uint64]:
        """The hashes of all of them."""
        self._hash()
        return np.concatenate(self._done) if len(self._done) > 1 else self._done[0]


def shingle(texts: Iterable[str], ngram: int, table: WordHashes) -> Shingles:
    """Word n-grams of texts, as 32-bit hashes. A text of fewer than n words is one n-gram; without words, none."""
    wide = shingle_wide(texts, ngram, table)
    return Shingles((wide.hashes_S >> np.uint64(32)).astype(np.uint32), wide.offsets)


def shingle_wide(texts: Iterable[str], ngram: int, table: WordHashes) -> Shingles64:
    """The same n-grams as 64-bit hashes."""
    gap = [b""] * (ngram - 1)
    hashes = _Hashes(table)
    lengths: list[int] = []
    for text in texts:
        first = len(hashes)
        for piece in pieces(text):
            hashes.add(words(piece))
        lengths.append(len(hashes) - first)
        hashes.add(gap)
    hashes.add(gap)
    length_D = np.array(lengths, np.int64)
    count_D = np.where(length_D > 0, np.maximum(length_D - ngram + 1, 1), 0)
    rolled = mix_in_place(_rolled(hashes.all(), ngram))
    offsets = np.concatenate([[0], np.cumsum(count_D)])
    if len(lengths) == 1:  # as a long document is: nothing stands between its n-grams
        return Shingles64(rolled[: offsets[1]], offsets)
    starts_D = np.cumsum(length_D + ngram - 1) - (length_D + ngram - 1)
    position_S = np.arange(offsets[-1]) + np.repeat(starts_D - offsets[:-1], count_D)
    return Shingles64(rolled[position_S], offsets)


def _rolled(hashes: NDArray[np.uint64], ngram: int) -> NDArray[np.uint64]:
    """sum_j hashes[i + j] * m_j mod 2^64 at each place i, with odd multipliers m_j: the order of words counts."""
    size = max(len(hashes) - ngram + 1, 0)
    multipliers = np.random.default_rng(0x5EED).integers(0, 2**63, ngram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    total = np.zeros(size, np.uint64)
    for start in range(0, size, BLOCK):
        part = total[start : start + BLOCK]
        for j, multiplier in enumerate(multipliers):
            part += hashes[start + j : start + j + len(part)] * multiplier
    return total


def jaccard(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """|A and B| / |A or B| of two documents' n-gram sets; 0 where both are empty."""
    a, b = np.unique(left), np.unique(right)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)
