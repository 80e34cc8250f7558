"""N-gram overlap: text that says again what was said before it, elsewhere or in itself, is of low quality.

The n-grams of the documents that were kept are remembered in a Bloom filter of fixed size, as in the deduplication of
DataComp-LM (arXiv 2406.11794, appendix L). Its false positives only add to an overlap, and their rate is bounded.

Letters: D documents, S n-grams.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped
from lmopt.data.hashing import BLOCK, mix
from lmopt.data.scratch import Scratch
from lmopt.data.shingles import WordHashes, shingle_wide
from lmopt.data.stage import Batch, Stage
from lmopt.data.storage import DataError
from lmopt.recipe import NgramOverlap

PROBES = 4
"""Bits an n-gram. At a false-positive rate of 1% four need 10.5 bits an n-gram, the best number, seven, 9.6."""
MOST_FALSE = 0.01
"""Largest rate of false positives (DataComp-LM, appendix L)."""


class BloomFilter:
    """A set of 64-bit hashes in a fixed number of bytes: never forgets, sometimes takes a new one for known."""

    def __init__(self, size_bytes: int) -> None:
        self._bits = 8 * (1 << max(size_bytes.bit_length() - 1, 3))  # a power of two, at most what was asked for
        self._table = np.zeros(self._bits // 64, np.uint64)
        self._set = 0

    def has(self, hash_S: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each hash was added."""
        found = np.empty(len(hash_S), np.bool_)
        for start in range(0, len(hash_S), BLOCK):
            word_SP, bit_SP = self._places(hash_S[start : start + BLOCK])
            found[start : start + BLOCK] = ((self._table[word_SP] & bit_SP) != 0).all(axis=1)
        return found

    def add(self, hash_S: NDArray[np.uint64]) -> None:
        """Add hashes."""
        for start in range(0, len(hash_S), BLOCK):
            word_SP, bit_SP = self._places(hash_S[start : start + BLOCK])
            touched = np.unique(word_SP)
            before = int(np.bitwise_count(self._table[touched]).sum())
            np.bitwise_or.at(self._table, word_SP.ravel(), bit_SP.ravel())
            self._set += int(np.bitwise_count(self._table[touched]).sum()) - before

    def false_positive_rate(self) -> float:
        """Probability that a hash that was not added seems to be there: (share of bits that are set)^PROBES."""
        return (self._set / self._bits) ** PROBES

    def _places(self, hash_S: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Double hashing (Kirsch and Mitzenmacher 2006): bit_p = h_1 + p h_2 mod size."""
        step_S = mix(hash_S) | np.uint64(1)
        bit_SP = (hash_S[:, None] + step_S[:, None] * np.arange(PROBES, dtype=np.uint64)) & np.uint64(self._bits - 1)
        return (bit_SP >> np.uint64(6)).astype(np.int64), np.uint64(1) << (bit_SP & np.uint64(63))


@functools.cache
def _table() -> WordHashes:
    """The word hashes of this process."""
    return WordHashes()


def _look(config: NgramOverlap, batch: Batch) -> list[tuple[NDArray[np.uint64], int]]:
    """(distinct n-grams, all n-grams) of each document."""
    found = shingle_wide((document.text for document in batch), config.ngram, _table())
    return [(np.unique(hashes), len(hashes)) for hashes in map(found.of, range(len(batch)))]


def _settle(
    config: NgramOverlap,
    found: Iterator[tuple[Batch, Any]],
    scratch: Scratch,  # noqa: ARG001 - the table's size is a knob: it is part of what the step does
) -> Iterator[Document | Dropped]:
    """Judge each document against those kept before it."""
    kept = BloomFilter(config.table)
    for batch, looked in found:
        for document, (distinct_S, count) in zip(batch, looked, strict=True):
            dropped = _judge(config, document, distinct_S, count, kept)
            if dropped is None:
                kept.add(distinct_S)
            yield dropped or document
        if kept.false_positive_rate() > MOST_FALSE:
            raise DataError(
                f"ngram_overlap: the table of {config.table} bytes is full (more than {MOST_FALSE:.0%} of unseen "
                f"n-grams would seem to be known)\nhint: a larger `table`, about 11 bits for each n-gram that is kept"
            )


def _judge(
    config: NgramOverlap, document: Document, distinct_S: NDArray[np.uint64], count: int, kept: BloomFilter
) -> Dropped | None:
    if not count:
        return None
    repeated = 1 - len(distinct_S) / count
    if config.max_repeated is not None and repeated > config.max_repeated:
        return Dropped(document, "repeats_itself", None, f"{repeated:.0%} of its {count} {config.ngram}-grams")
    if config.max_seen is None:
        return None
    seen = float(kept.has(distinct_S).mean())
    if seen > config.max_seen:
        return Dropped(document, "overlaps_earlier", None, f"{seen:.0%} of its {len(distinct_S)} {config.ngram}-grams")
    return None


overlap = Stage(_look, _settle)
