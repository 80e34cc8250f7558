"""Deduplication: of documents that say the same, the first is kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped, fingerprint
from lmopt.data.keytable import KeyTable
from lmopt.data.minhash import EMPTY, MinHash
from lmopt.data.scratch import Column, Scratch
from lmopt.data.shingles import WordHashes, jaccard, shingle
from lmopt.data.stage import Batch, Stage
from lmopt.data.storage import DataError
from lmopt.recipe import ExactDedup, NearDedup

ID_BYTES = 32
"""Longest document id, in UTF-8, that a table on disk keeps."""


# --- exact ---------------------------------------------------------------------------------------


def _fingerprints(config: ExactDedup, batch: Batch) -> NDArray[np.uint64]:  # noqa: ARG001 - no knobs
    """fingerprint_D2: both halves of each document's fingerprint."""
    return np.frombuffer(b"".join(fingerprint(document.text) for document in batch), np.uint64).reshape(-1, 2)


def _settle_exact(
    config: ExactDedup,  # noqa: ARG001 - no knobs
    found: Iterator[tuple[Batch, Any]],
    scratch: Scratch,
) -> Iterator[Document | Dropped]:
    """Drop every document whose normalised text was seen before, whatever source it came from."""
    earlier = _Earlier(scratch, [("second", np.uint64)])
    for batch, fingerprint_D2 in found:
        candidates = earlier.candidates(fingerprint_D2[:, :1])
        for document, (first, second), known in zip(batch, fingerprint_D2.tolist(), candidates, strict=True):
            for number in sorted(earlier.with_key([first], known)):
                if int(earlier.row(number)["second"]) == second:
                    kept = earlier.id_of(number)
                    yield Dropped(document, "exact_duplicate", kept, "same text but for case and spacing")
                    break
            else:
                earlier.remember(document, [first], (second,))
                yield document
        earlier.end_batch()


# --- near ----------------------------------------------------------------------------------------


class _Signed(NamedTuple):
    """The signatures of a batch."""

    signature_DP: NDArray[np.uint32]
    key_DB: NDArray[np.uint64]
    ngrams_D: list[NDArray[np.uint32]]
    """Each document's distinct n-grams, where they are to be compared; else nothing of any."""


class _Kept(NamedTuple):
    """The documents kept so far, and their n-grams one after the other."""

    earlier: _Earlier
    ngrams: Column


@functools.cache
def _table() -> WordHashes:
    """The word hashes of this process."""
    return WordHashes()


def _sign(config: NearDedup, batch: Batch) -> _Signed:
    hashing = MinHash(config.bands, config.rows)
    shingles = shingle((document.text for document in batch), config.ngram, _table())
    signature_DP = hashing.signatures(shingles)
    compared = config.verify is not None
    ngrams_D = [np.unique(shingles.of(d)) if compared else shingles.hashes_S[:0] for d in range(len(batch))]
    return _Signed(signature_DP, hashing.keys(signature_DP), ngrams_D)


def _settle_near(
    config: NearDedup, found: Iterator[tuple[Batch, Any]], scratch: Scratch
) -> Iterator[Document | Dropped]:
    """Drop a document that shares a band of its MinHash signature with an earlier document that was kept.

    A document is compared with kept ones only, so whoever is named as its duplicate is still in the corpus; texts
    that are linked through a dropped one alone both stay. Texts without a word are never duplicates.
    """
    fields = [("signature", np.uint32, (config.bands * config.rows,)), ("first", np.int64), ("count", np.int64)]
    kept = _Kept(_Earlier(scratch, fields), Column(scratch, np.uint32))
    earlier = kept.earlier
    for batch, (signature_DP, key_DB, ngrams_D) in found:
        candidates = earlier.candidates(key_DB)
        keys = key_DB.tolist()
        looked = zip(batch, signature_DP, ngrams_D, keys, candidates, strict=True)
        for document, signature_P, ngrams, key_B, known in looked:
            if (signature_P == EMPTY).all():
                yield document
                continue
            similar = _similarities(config, signature_P, ngrams, kept, earlier.with_key(key_B, known))
            dropped = _more_similar(config, document, similar, earlier)
            if dropped is None:
                earlier.remember(document, key_B, (signature_P, len(kept.ngrams), len(ngrams)))
                kept.ngrams.append(ngrams)
            yield dropped or document
        earlier.end_batch()


def _similarities(
    config: NearDedup, signature_P: NDArray[np.uint32], ngrams: NDArray[np.uint32], kept: _Kept, numbers: set[int]
) -> dict[int, float]:
    """Jaccard similarity to each of these kept documents: exact where it is asked for, else as signatures agree."""
    rows = {number: kept.earlier.row(number) for number in numbers}
    if config.verify is None:
        return {number: float((row["signature"] == signature_P).mean()) for number, row in rows.items()}
    return {
        number: jaccard(ngrams, kept.ngrams.fetch(int(row["first"]), int(row["count"]))) for number, row in rows.items()
    }


def _more_similar(
    config: NearDedup, document: Document, similar: dict[int, float], earlier: _Earlier
) -> Dropped | None:
    """The document's removal in favour of the most similar of these, where that is similar enough."""
    if not similar:
        return None
    best = min(similar, key=lambda number: (-similar[number], number))
    if config.verify is not None and similar[best] < config.verify:
        return None
    estimated = "estimated " if config.verify is None else ""
    detail = f"{estimated}Jaccard similarity {similar[best]:.2f} of word n-grams"
    return Dropped(document, "near_duplicate", earlier.id_of(best), detail)


# --- kept documents ------------------------------------------------------------------------------


class _Earlier:
    """The documents kept so far, numbered in their order, found by keys: those of this batch apart from the others."""

    def __init__(self, scratch: Scratch, fields: list[Any]) -> None:
        self._rows = Column(scratch, [("id", f"S{ID_BYTES}"), *fields])
        self._table = KeyTable(scratch)
        self._new: list[tuple[Any, ...]] = []
        self._new_keys: dict[int, list[int]] = {}

    def candidates(self, key_DB: NDArray[np.uint64]) -> list[set[int]]:
        """Numbers of the documents of earlier batches that share a key, for each document of a batch."""
        found: list[set[int]] = [set() for _ in range(len(key_DB))]
        places, numbers = self._table.find(key_DB.ravel())
        for place, number in zip((places // max(key_DB.shape[1], 1)).tolist(), numbers.tolist(), strict=True):
            found[place].add(number)
        return found

    def with_key(self, keys: list[int], known: set[int]) -> set[int]:
        """`known`, and those of this batch that have one of the keys."""
        return known.union(*(self._new_keys.get(key, ()) for key in keys))

    def remember(self, document: Document, keys: list[int], fields: tuple[Any, ...]) -> None:
        """Number a document that is kept."""
        name = document.id.encode()
        if len(name) > ID_BYTES:
            raise DataError(f"document id {document.id!r} is longer than {ID_BYTES} bytes\nhint: use a hash of it")
        for key in set(keys):
            self._new_keys.setdefault(key, []).append(len(self._rows) + len(self._new))
        self._new.append((name, *fields))

    def row(self, number: int) -> Any:
        """The fields of a kept document."""
        if number >= len(self._rows):
            return np.array(self._new[number - len(self._rows)], self._rows.kind)
        return self._rows.fetch(number)[0]

    def id_of(self, number: int) -> str:
        """The id of a kept document."""
        return self.row(number)["id"].item().decode()

    def end_batch(self) -> None:
        """Put the documents of this batch with the others."""
        pairs = [(key, number) for key, numbers in self._new_keys.items() for number in numbers]
        if pairs:
            keys, numbers = zip(*pairs, strict=True)
            self._table.add(np.array(keys, np.uint64), np.array(numbers, np.int64))
            self._rows.append(np.array(self._new, self._rows.kind))
        self._new.clear()
        self._new_keys.clear()


exact = Stage(_fingerprints, _settle_exact)
near = Stage(_sign, _settle_near)
