"""Polynomial hashes mod 2^64: sum_k c_k BASE^k, of a word's characters or of a window's words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse mod 2^64."""
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
BLOCK = 1 << 16
"""Numbers worked on at once: half a megabyte stays in a core's cache, and nothing of a long text's size is made."""


def powers(count: int, base: np.uint64 = BASE) -> NDArray[np.uint64]:
    """base^0 ... base^(count - 1) mod 2^64."""
    steps = np.full(max(count, 1), base, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3 (Appleby): every bit of a value reaches every bit of the result."""
    return mix_in_place(np.array(values, np.uint64))


def mix_in_place(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same, written over the values."""
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        for multiplier in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
            block ^= block >> np.uint64(33)
            block *= multiplier
        block ^= block >> np.uint64(33)
    return values


def windows(hash_W: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hash of the n words from each word on, by running sums: W - n + 1 of them, whatever n costs the same."""
    count = len(hash_W) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    before = powers(len(hash_W))  # sums of the words before each, the first left out: a long text has one such array
    before *= hash_W
    np.cumsum(before, out=before)
    found = before[n - 1 :].copy()
    found[1:] -= before[: count - 1]
    del before
    found *= powers(count, INVERSE)
    return mix_in_place(found)
