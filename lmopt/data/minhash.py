"""MinHash signatures and the bands of locality-sensitive hashing (Broder 1997; Leskovec et al., ch. 3.4).

Letters: D documents, S shingles, P permutations = bands x rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmopt.data.shingles import Shingles

BLOCK_SHINGLES = 1 << 15
"""Shingles permuted at a time: 128 KiB, so that a block stays in a core's cache for all permutations."""
PERMUTATION_SEED = 0x4D696E48
EMPTY = np.uint32(0xFFFFFFFF)
"""Signature of a document without shingles."""


class MinHash:
    """P random permutations x -> a x + b mod 2^32 (a odd), the same ones whenever bands and rows are the same.

    Args:
        draw: another number draws other permutations.
    """

    def __init__(self, bands: int, rows: int, draw: int = 0) -> None:
        self.bands, self.rows = bands, rows
        rng = np.random.default_rng([PERMUTATION_SEED, bands, rows, *([draw] if draw else [])])
        self.a_P = rng.integers(0, 2**32, bands * rows, dtype=np.uint32) | np.uint32(1)
        self.b_P = rng.integers(0, 2**32, bands * rows, dtype=np.uint32)
        self.mix_R = rng.integers(0, 2**63, rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def signatures(self, shingles: Shingles) -> NDArray[np.uint32]:
        """signature_DP: the least permuted shingle of each document under each permutation."""
        offsets = shingles.offsets
        signature_DP = np.full((len(offsets) - 1, len(self.a_P)), EMPTY, np.uint32)
        filled = np.flatnonzero(np.diff(offsets))
        first = 0
        while first < len(filled):
            start = offsets[filled[first]]
            last = max(int(np.searchsorted(offsets[filled + 1], start + BLOCK_SHINGLES, side="right")), first + 1)
            documents = filled[first:last]
            block_S = shingles.hashes_S[start : offsets[documents[-1] + 1]]
            signature_DP[documents] = self._block(block_S, offsets[documents] - start)
            first = last
        return signature_DP

    def _block(self, hashes_S: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.uint32]:
        permuted_S = np.empty_like(hashes_S)
        least_PD = np.empty((len(self.a_P), len(starts)), np.uint32)
        for p, (a, b) in enumerate(zip(self.a_P, self.b_P, strict=True)):
            np.multiply(hashes_S, a, out=permuted_S)
            np.add(permuted_S, b, out=permuted_S)
            np.minimum.reduceat(permuted_S, starts, out=least_PD[p])
        return least_PD.T

    def keys(self, signature_DP: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """key_DB: one number a band; documents that share one have the same `rows` minima in that band."""
        signature_DBR = signature_DP.reshape(-1, self.bands, self.rows).astype(np.uint64)
        key_DB = (signature_DBR * self.mix_R).sum(axis=2, dtype=np.uint64)
        return (key_DB ^ (key_DB >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + np.arange(
            self.bands, dtype=np.uint64
        )


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """P(at least one shared band) = 1 - (1 - s^rows)^bands at Jaccard similarity s."""
    return 1 - (1 - similarity**rows) ** bands
