"""SuperMinHash signatures (Ertl 2017, arXiv 1706.05698) and the bands of locality-sensitive hashing.

A signature has P places that two documents of Jaccard similarity J share with probability J each, as MinHash's (Broder
1997). There every place draws its least shingle from all of them, independently. Here each shingle visits the places
in a random order of its own, and a place keeps the shingle that came to it first: different shingles stand in different
places as far as there are enough, so the share of equal places strays less from J.

Letters: D documents, S shingles, P = bands x rows places, M places visited: P or a few more, a prime.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from lmopt.data.hashing import mix_in_place
from lmopt.data.shingles import Shingles

BLOCK_SHINGLES = 1 << 17
"""Shingles at a time: a few megabytes in all, and enough for numpy's calls to cost little."""
SEED = 0x4D696E48
EMPTY = np.uint32(0xFFFFFFFF)
"""Signature of a document without shingles."""
LOW_WORD, WORD_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


class MinHash:
    """Signatures of bands x rows places, the same whenever bands and rows are the same.

    Args:
        draw: another number draws other orders of visit.
    """

    def __init__(self, bands: int, rows: int, draw: int = 0) -> None:
        self.bands, self.rows = bands, rows
        rng = np.random.default_rng([SEED, bands, rows, *([draw] if draw else [])])
        self.places = _prime_from(bands * rows)
        self.shift = np.uint32(32 - self.places.bit_length())
        """A place holds the number of a visit above so many bits of chance, which decides between two of one visit."""
        self.seed = rng.integers(0, 2**64, dtype=np.uint64)
        self.chance = _odd(rng, 1)[0]
        self.chance_M = _odd(rng, self.places).astype(np.uint32)
        self.taken_P = rng.permutation(self.places)[: bands * rows]
        """The places of a signature, in an order that no shingle's steps follow."""
        self.mix_R = _odd(rng, rows)

    def signatures(self, shingles: Shingles) -> NDArray[np.uint32]:
        """signature_DP: documents share a place where the same shingle of both came first."""
        offsets = shingles.offsets
        first_DM = np.full((len(offsets) - 1, self.places), EMPTY, np.uint32)
        for start in range(0, len(shingles.hashes_S), BLOCK_SHINGLES):
            block_S = shingles.hashes_S[start : start + BLOCK_SHINGLES]
            begin = int(np.searchsorted(offsets, start, side="right")) - 1
            end = int(np.searchsorted(offsets, start + len(block_S), side="left"))
            count_D = np.diff(np.clip(offsets[begin : end + 1], start, start + len(block_S)))
            self._visit(block_S, count_D, first_DM[begin:end])
        return first_DM[:, self.taken_P]

    def _visit(self, hashes_S: NDArray[np.uint32], count_D: NDArray[np.int64], first_DM: NDArray[np.uint32]) -> None:
        """Let the shingles of these documents visit places until none can come first any more.

        A shingle's order is (start + visit * step) mod M: M is a prime, so it comes to every place once.
        """
        size = np.uint64(self.places)
        order_S = mix_in_place(hashes_S ^ self.seed)
        place_S = ((order_S >> WORD_BITS) * size >> WORD_BITS).astype(np.uint32)
        step_S = ((order_S & LOW_WORD) * (size - np.uint64(1)) >> WORD_BITS).astype(np.uint32) + np.uint32(1)
        chance_S = (order_S * self.chance >> WORD_BITS).astype(np.uint32)
        open_D = np.flatnonzero(count_D)
        owner_S = np.repeat(np.arange(len(count_D)), count_D)
        is_open_D, next_look = np.zeros(len(count_D), bool), 1
        flat = first_DM.reshape(-1)
        for visit in range(self.places):
            value_S = chance_S * self.chance_M[visit]
            value_S >>= np.uint32(32) - self.shift
            value_S |= np.uint32(visit) << self.shift
            np.minimum.at(flat, owner_S * self.places + place_S, value_S)
            if visit == next_look:
                next_look += 1 + visit // 4
                is_open_D[open_D] = (first_DM[open_D] >= np.uint32(visit + 1) << self.shift).any(axis=1)
                open_D = open_D[is_open_D[open_D]]
                if not len(open_D):
                    return
                is_open_S = is_open_D[owner_S]
                if np.count_nonzero(is_open_S) < 0.9 * len(owner_S):
                    owner_S, place_S, step_S, chance_S = (
                        one[is_open_S] for one in (owner_S, place_S, step_S, chance_S)
                    )
            place_S += step_S
            np.minimum(place_S, place_S - np.uint32(self.places), out=place_S)  # mod M: below zero it wraps around

    def keys(self, signature_DP: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """key_DB: one number a band; documents that share one share the `rows` places of that band."""
        signature_DBR = signature_DP.reshape(-1, self.bands, self.rows).astype(np.uint64)
        key_DB = (signature_DBR * self.mix_R).sum(axis=2, dtype=np.uint64)
        return (key_DB ^ (key_DB >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + np.arange(
            self.bands, dtype=np.uint64
        )


def _odd(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Random multipliers that lose no bits."""
    return rng.integers(0, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _prime_from(least: int) -> int:
    """The smallest prime that is not smaller, and at least 3."""
    return next(n for n in itertools.count(max(least, 3)) if all(n % d for d in range(2, int(n**0.5) + 1)))


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """P(at least one shared band) = 1 - (1 - s^rows)^bands at Jaccard similarity s, of places that are independent."""
    return 1 - (1 - similarity**rows) ** bands
