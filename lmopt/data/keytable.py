"""Which earlier documents have a key: a table of 64-bit keys that outgrows memory without growing it.

A log-structured merge tree: what is added is sorted and merged with earlier additions of its size, so that there are
few sorted arrays to look into; when they exceed the memory they are written to disk as one run and mapped from there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.scratch import Column, Mapped, Scratch

BYTES_A_PAIR = 16


class _Level(NamedTuple):
    keys: NDArray[np.uint64]
    values: NDArray[np.int64]


class KeyTable:
    """key -> numbers, in any amount; a key may have several."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._levels: list[_Level] = []
        self._runs: list[tuple[Mapped, Mapped]] = []

    def add(self, keys: NDArray[np.uint64], values: NDArray[np.int64]) -> None:
        """Remember pairs."""
        if not len(keys):
            return
        self._levels.append(_sorted(keys, values))
        while len(self._levels) > 1 and len(self._levels[-2].keys) <= 2 * len(self._levels[-1].keys):
            second, first = self._levels.pop(), self._levels.pop()
            self._levels.append(
                _sorted(np.concatenate([first.keys, second.keys]), np.concatenate([first.values, second.values]))
            )
        # Merging two arrays needs as much again.
        if 2 * BYTES_A_PAIR * sum(len(level.keys) for level in self._levels) > self._scratch.memory_bytes:
            self._spill()

    def _spill(self) -> None:
        whole = _sorted(*(np.concatenate(parts) for parts in zip(*self._levels, strict=True)))
        columns = Column(self._scratch, np.uint64), Column(self._scratch, np.int64)
        for column, part in zip(columns, whole, strict=True):
            column.append(part)
        self._runs.append((columns[0].map(), columns[1].map()))
        self._levels.clear()

    @property
    def runs(self) -> int:
        """Runs on disk."""
        return len(self._runs)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(place, value) of every pair: keys[place] was added with the value. In no order."""
        found = [_look_up(level.keys, level.values, keys) for level in self._levels]
        for run_keys, run_values in self._runs:
            found.append(_look_up(run_keys.array, run_values.array, keys))
            run_keys.release()
            run_values.release()
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places, values = zip(*found, strict=True)
        return np.concatenate(places), np.concatenate(values)


def _sorted(keys: NDArray[np.uint64], values: NDArray[np.int64]) -> _Level:
    order = np.argsort(keys, kind="stable")
    return _Level(keys[order], values[order])


def _look_up(
    known: NDArray[np.uint64], values: NDArray[np.int64], keys: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = np.searchsorted(known, keys, side="left")
    count = np.searchsorted(known, keys, side="right") - first
    place = np.repeat(np.arange(len(keys)), count)
    within = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    return place, np.array(values[first[place] + within])
