"""Numbers to be met in order, more of them than memory holds: sorted runs on disk, merged a range at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lmopt.data.scratch import Column, Mapped, Scratch
from lmopt.data.storage import DataError

PAIR = np.dtype([("key", np.uint64), ("place", np.uint64)])
EDGES = 1 << 12
"""Ranges of keys that are never taken apart."""


class SortedRuns:
    """Pairs of a key and a place, added in any order, read back sorted by both."""

    def __init__(self, scratch: Scratch, most: int = 2**64 - 1) -> None:
        """`most` is the largest key there can be."""
        self._room = max(scratch.memory_bytes // (4 * PAIR.itemsize), 1)  # sorting copies; so does merging
        self._scratch = scratch
        self._edges = np.array([most * i // EDGES for i in range(1, EDGES)], np.uint64)
        self._waiting: list[NDArray[np.void]] = []
        self._count = 0
        self._column = Column(scratch, PAIR)
        self._bounds: list[NDArray[np.int64]] = []

    def add(self, keys: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Remember pairs."""
        for start in range(0, len(keys), self._room):  # those of one long document may not fit at once
            part = slice(start, start + self._room)
            pairs = np.empty(len(keys[part]), PAIR)
            pairs["key"], pairs["place"] = keys[part], places[part]
            self._waiting.append(pairs)
            self._count += len(pairs)
            if self._count >= self._room:
                self._flush()

    def _flush(self) -> None:
        if not self._count:
            return
        run = _in_order(np.concatenate(self._waiting))
        first = len(self._column)
        inner = np.searchsorted(run["key"], self._edges, side="right")
        self._bounds.append(first + np.concatenate([[0], inner, [len(run)]]))
        self._column.append(run)
        self._waiting.clear()
        self._count = 0

    def ranges(self) -> Iterator[NDArray[np.void]]:
        """All pairs, sorted, in pieces that fit the memory; equal keys are in one piece.

        Raises:
            DataError: one range of keys alone does not fit.
        """
        self._flush()
        if not self._bounds:
            return
        mapped = self._column.map()
        size_E = np.sum([np.diff(bounds) for bounds in self._bounds], axis=0)
        first = 0
        while first < EDGES:
            last = first + 1
            while last < EDGES and size_E[first : last + 1].sum() <= self._room:
                last += 1
            if size_E[first:last].sum() > 4 * self._room:
                needed = int(size_E[first:last].sum()) * PAIR.itemsize
                raise DataError(f"{needed} bytes of one range of keys do not fit\nhint: allow the step more memory")
            yield self._piece(mapped, first, last)
            first = last

    def _piece(self, mapped: Mapped, first: int, last: int) -> NDArray[np.void]:
        parts = [np.array(mapped.array[bounds[first] : bounds[last]]) for bounds in self._bounds]
        mapped.release()
        return _in_order(np.concatenate(parts))


def _in_order(pairs: NDArray[np.void]) -> NDArray[np.void]:
    return pairs[np.lexsort((pairs["place"], pairs["key"]))]
