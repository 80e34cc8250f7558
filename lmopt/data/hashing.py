"""Polynomial hashes mod 2^64: sum_k c_k BASE^k, of a word's characters or of a window's words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse mod 2^64."""
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))


def powers(count: int, base: np.uint64 = BASE) -> NDArray[np.uint64]:
    """base^0 ... base^(count - 1) mod 2^64."""
    steps = np.full(max(count, 1), base, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3 (Appleby): every bit of a value reaches every bit of the result."""
    for multiplier in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(33))) * multiplier
    return values ^ (values >> np.uint64(33))


def windows(hash_W: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hash of the n words from each word on, by running sums: W - n + 1 of them, whatever n costs the same."""
    count = len(hash_W) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hash_W * powers(len(hash_W)))])
    return mix((before[n:] - before[:count]) * powers(count, INVERSE))
