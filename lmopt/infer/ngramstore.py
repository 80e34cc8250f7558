"""What followed every n-gram of many texts most often: a store that drafts are looked up in (REST, arXiv 2311.08252).

REST asks a suffix array, which tells all that ever followed; here each n-gram keeps its likeliest follower and that
one's share, which is all that a chain of drafts uses, and an answer takes microseconds. N-grams are known by 64-bit
hashes: two that collide make a poor draft, never a wrong text, for every draft is checked.

Letters: T tokens, G groups of equal (n-gram, follower), K different n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BASE = 0x9E3779B97F4A7C15
"""Of the polynomial that hashes an n-gram: an odd number without a pattern (2^64 over the golden ratio)."""
TOKEN_BITS = 24
"""Room for a token id beside a count in one number."""


class Guess(NamedTuple):
    """What follows an n-gram most often."""

    token: int
    share: float
    """How often it is expected to: its count over that of the n-gram and one more, for what was never seen."""
    size: int
    """Tokens of the n-gram."""


@dataclass(frozen=True, slots=True)
class _Size:
    """All n-grams of one size."""

    hash_K: NDArray[np.uint64]
    """Ascending."""
    token_K: NDArray[np.uint32]
    share_K: NDArray[np.float32]


class NgramStore:
    """N-grams of 1 to `longest` tokens, and what follows each most often.

    It takes up to 16 bytes for each different n-gram, and while it is built about 60 for each token.

    Args:
        tokens_T: the texts, one behind the other; an end-of-text token between two keeps them apart.
        longest: tokens of the longest n-grams.

    Raises:
        ValueError: there is nothing to count, or a token id needs more than 24 bits.
    """

    def __init__(self, tokens_T: NDArray[np.integer], longest: int = 4) -> None:
        if longest < 1 or len(tokens_T) <= longest:
            raise ValueError(f"{len(tokens_T)} tokens hold no n-gram of {longest} with a token behind it")
        if int(tokens_T.max()) >> TOKEN_BITS:
            raise ValueError(f"token id {tokens_T.max()}: at most {(1 << TOKEN_BITS) - 1} is possible")
        self.longest, self.tokens = longest, len(tokens_T)
        self._sizes = [_count(tokens_T, size) for size in range(1, longest + 1)]

    @property
    def nbytes(self) -> int:
        """Of its tables."""
        return sum(part.nbytes for one in self._sizes for part in (one.hash_K, one.token_K, one.share_K))

    def guess(self, text: Sequence[int]) -> Guess | None:
        """What follows the longest n-gram at the end of a text that was ever seen; of equals the lowest token id."""
        hashes, key, factor = list[int](), 0, 1
        for token in reversed(text[-self.longest :]):  # from the last token to the left
            key = (key + (token + 1) * factor) & 0xFFFFFFFFFFFFFFFF
            factor = factor * BASE & 0xFFFFFFFFFFFFFFFF
            hashes.append(key)
        for size in range(len(hashes), 0, -1):
            table, wanted = self._sizes[size - 1], np.uint64(hashes[size - 1])
            place = int(table.hash_K.searchsorted(wanted))
            if place < len(table.hash_K) and table.hash_K[place] == wanted:
                return Guess(int(table.token_K[place]), float(table.share_K[place]), size)
        return None


def _count(tokens_T: NDArray[np.integer], size: int) -> _Size:
    """Sorted by n-gram and follower, equal ones lie side by side and are counted by where they begin."""
    following_T = tokens_T[size:].astype(np.uint64)
    hash_T = np.zeros(len(following_T), np.uint64)
    for start in range(size):
        hash_T = hash_T * np.uint64(BASE) + tokens_T[start : start + len(hash_T)].astype(np.uint64) + np.uint64(1)
    order_T = np.lexsort((following_T, hash_T))
    hash_T, following_T = hash_T[order_T], following_T[order_T]
    begin_G = np.flatnonzero(_changes(hash_T) | _changes(following_T))
    count_G = np.diff(begin_G, append=len(hash_T)).astype(np.uint64)
    hash_G, following_G = hash_T[begin_G], following_T[begin_G]
    begin_K = np.flatnonzero(_changes(hash_G))
    last = np.uint64((1 << TOKEN_BITS) - 1)
    best_K = np.maximum.reduceat(count_G << np.uint64(TOKEN_BITS) | last - following_G, begin_K)
    share_K = (best_K >> np.uint64(TOKEN_BITS)) / (np.add.reduceat(count_G, begin_K) + np.uint64(1))
    return _Size(hash_G[begin_K], (last - (best_K & last)).astype(np.uint32), share_K.astype(np.float32))


def _changes(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Where another value begins."""
    return np.concatenate([[True], values[1:] != values[:-1]])
