"""Held-out text, and keeping it out: which documents validate, and which training documents repeat them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped, fingerprint
from lmopt.data.shingles import Shingles, WordHashes, shingle
from lmopt.data.stage import batches

NGRAM = 5
"""Words a shingle, as in near-deduplication."""
LEAST_CONTAINMENT = 0.3
"""Share of the shorter text's 5-grams that, found in the other, makes the two duplicates. Independent texts of one
topic share a few percent; sentence shuffles of one passage share 60% and more."""
SHORT_SHINGLES = 10
"""Texts of fewer 5-grams are compared by Jaccard similarity instead: a common phrase is not a copy."""


def is_held_out(document: Document, share: float) -> bool:
    """Whether the hash of the normalised text falls in the held-out share: the same for all copies, on any machine."""
    return int.from_bytes(fingerprint(document.text)[:8], "big") < share * 2**64


class HeldOut:
    """The validation documents, against which other documents are compared exactly, by their 5-grams."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self._fingerprints: dict[bytes, int] = {}
        self._sizes: list[int] = []
        self._owners: dict[int, list[int]] = {}
        self._table = WordHashes()

    def add_distinct(self, documents: Iterable[Document]) -> Iterator[Dropped]:
        """Take documents in, except those that repeat one already taken: yields these."""
        for document in documents:
            hashes = np.unique(shingle([document.text], NGRAM, self._table).hashes_S).tolist()
            dropped = self._verdict(document, hashes, "repeats_validation")
            if dropped is not None:
                yield dropped
                continue
            for value in hashes:
                self._owners.setdefault(value, []).append(len(self.documents))
            self._fingerprints[fingerprint(document.text)] = len(self.documents)
            self._sizes.append(len(hashes))
            self.documents.append(document)

    def without_duplicates(self, documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        """Training documents, those that repeat a validation document dropped with its id."""
        known = np.sort(np.fromiter(self._owners, np.uint32, len(self._owners)))
        for batch in batches(documents):
            shingles = shingle((document.text for document in batch), NGRAM, self._table)
            suspects = _containing(shingles, known)
            for number, document in enumerate(batch):
                hashes = np.unique(shingles.of(number)).tolist() if number in suspects else []
                yield self._verdict(document, hashes, "duplicates_validation") or document

    def _verdict(self, document: Document, distinct: list[int], reason: str) -> Dropped | None:
        same = self._fingerprints.get(fingerprint(document.text))
        if same is not None:
            return Dropped(document, reason, self.documents[same].id, "same text but for case and spacing")
        shared = Counter(owner for value in distinct for owner in self._owners.get(value, ()))
        similarity = {owner: self._similarity(owner, count, len(distinct)) for owner, count in shared.items()}
        best = max(similarity, key=lambda owner: (similarity[owner], -owner), default=None)
        if best is None or similarity[best] < LEAST_CONTAINMENT:
            return None
        detail = f"shares {similarity[best]:.0%} of its 5-grams"
        return Dropped(document, reason, self.documents[best].id, detail)

    def _similarity(self, owner: int, shared: int, size: int) -> float:
        """Containment of the shorter text in the longer; Jaccard similarity where the shorter is a mere phrase."""
        smaller = min(size, self._sizes[owner])
        return shared / (size + self._sizes[owner] - shared if smaller < SHORT_SHINGLES else smaller)


def _containing(shingles: Shingles, known: NDArray[np.uint32]) -> set[int]:
    """Documents of a batch with any of the known 5-grams (sorted)."""
    if not len(known):
        return set()
    place = np.minimum(np.searchsorted(known, shingles.hashes_S), len(known) - 1)
    hits = np.flatnonzero(known[place] == shingles.hashes_S)
    return set((np.searchsorted(shingles.offsets, hits, side="right") - 1).tolist())
