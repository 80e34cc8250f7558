"""Repeated spans: text of n words or more that occurred before in the corpus is cut out, its first occurrence stays.

What Lee et al. (arXiv 2107.06499, section 4.1) find with a suffix array: a span of at least n words occurs twice
exactly if each of its windows of n words does. So every window is hashed (64 bits), windows are sorted by hash in runs
on disk, and of equal ones all but the first are cut. Memory is bounded; a suffix array needs 4 to 8 bytes a character.

Letters: W windows of a batch, D documents.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from operator import attrgetter
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped
from lmopt.data.hashing import windows
from lmopt.data.scratch import Scratch
from lmopt.data.shingles import WordHashes, hash_runs
from lmopt.data.sortedruns import SortedRuns
from lmopt.data.stage import Batch, Stage
from lmopt.recipe import SubstringDedup

_WORD = re.compile(r"\S+")
_ROW = attrgetter(*(field.name for field in fields(Document)))


class _Seen(NamedTuple):
    """The windows of a batch."""

    hash_W: NDArray[np.uint64]
    start_W: NDArray[np.uint64]
    """The first word of each, counted from the first word of the batch."""
    words_D: NDArray[np.int64]
    """Words of each document."""


@functools.cache
def _table() -> WordHashes:
    """The word hashes of this process."""
    return WordHashes()


def _look(config: SubstringDedup, batch: Batch) -> _Seen:
    hashes, offsets = hash_runs((document.text for document in batch), _table())
    starts = [np.arange(first, end - config.words + 1, dtype=np.uint64) for first, end in pairwise(offsets.tolist())]
    start_W = np.concatenate(starts) if len(starts) > 1 else starts[0]  # a window's words are left of the document
    hash_W = windows(hashes, config.words)
    within = hash_W if len(start_W) == len(hash_W) else hash_W[start_W]
    return _Seen(within, start_W, np.diff(offsets))


def _settle(
    config: SubstringDedup, found: Iterator[tuple[Batch, Any]], scratch: Scratch
) -> Iterator[Document | Dropped]:
    """Collect all windows; only then is it known which spans were there before."""
    runs, total = SortedRuns(scratch), 0
    with scratch.open() as spool:
        for batch, seen in found:
            runs.add(seen.hash_W, seen.start_W + np.uint64(total))
            spool.write(_line(batch, seen.words_D))
            total += int(seen.words_D.sum())
        repeated = SortedRuns(scratch, most=max(total, 1))
        for piece in runs.ranges():
            again = piece["place"][1:][piece["key"][1:] == piece["key"][:-1]]
            repeated.add(again, again)
        del runs
        yield from _cut_all(config, spool, _Ascending(repeated))


def _line(batch: Batch, words_D: NDArray[np.int64]) -> bytes:
    """A batch set aside: JSON, which escapes the line feeds inside of texts."""
    line = json.dumps([[_ROW(document) for document in batch], words_D.tolist()], ensure_ascii=False)
    return line.encode("utf-8", "surrogatepass") + b"\n"


def _cut_all(config: SubstringDedup, spool: IO[bytes], repeated: _Ascending) -> Iterator[Document | Dropped]:
    spool.seek(0)
    first = 0
    for line in spool:
        rows, words_D = json.loads(line)
        for row, words in zip(rows, words_D, strict=True):
            document = Document(*row)
            starts = repeated.below(first + words) - first
            yield _cut(config, document, words, starts) if len(starts) else document
            first += words


class _Ascending:
    """Places in ascending order, taken from the front."""

    def __init__(self, runs: SortedRuns) -> None:
        self._pieces = runs.ranges()
        self._piece = np.empty(0, np.int64)

    def below(self, end: int) -> NDArray[np.int64]:
        """All places below `end` that were not taken yet."""
        taken = []
        while True:
            count = int(np.searchsorted(self._piece, end))
            taken.append(self._piece[:count])
            self._piece = self._piece[count:]
            if len(self._piece):
                return np.concatenate(taken)
            following = next(self._pieces, None)
            if following is None:
                return np.concatenate(taken)
            self._piece = following["place"].astype(np.int64)


def _cut(config: SubstringDedup, document: Document, words: int, starts: NDArray[np.int64]) -> Document | Dropped:
    """The document without the windows that start at these words, or its removal where too little is left."""
    change = np.zeros(words + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + config.words, -1)
    is_cut = np.cumsum(change[:-1]) > 0
    left = int((~is_cut).sum())
    if left < max(config.min_words, 1):
        return Dropped(document, "repeated_span", None, f"{words - left} of {words} words were in earlier documents")
    begins = np.fromiter((found.start() for found in _WORD.finditer(document.text)), np.int64)
    edges = np.flatnonzero(np.diff(is_cut, prepend=False)).tolist()  # where cut and kept words change places
    pieces, kept_from = [], 0
    for number, edge in enumerate(edges):
        if number % 2 == 0:
            pieces.append(document.text[kept_from : begins[edge]])
        else:
            kept_from = begins[edge]
    if len(edges) % 2 == 0:
        pieces.append(document.text[kept_from:])
    return replace(document, text="".join(pieces).strip())


substring = Stage(_look, _settle)
