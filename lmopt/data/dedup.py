"""Deduplication: of documents that say the same, the first is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped, fingerprint
from lmopt.data.minhash import EMPTY, MinHash
from lmopt.data.shingles import WordHashes, shingle
from lmopt.recipe import ExactDedup, NearDedup

BATCH_DOCUMENTS = 512


def exact(config: ExactDedup, documents: Iterable[Document]) -> Iterator[Document | Dropped]:  # noqa: ARG001 - no knobs
    """Drop every document whose normalised text was seen before, whatever source it came from."""
    seen: dict[bytes, str] = {}
    for document in documents:
        kept = seen.setdefault(fingerprint(document.text), document.id)
        if kept == document.id:
            yield document
        else:
            yield Dropped(document, "exact_duplicate", kept, "same text but for case and spacing")


def near(config: NearDedup, documents: Iterable[Document]) -> Iterator[Document | Dropped]:
    """Drop a document that shares a band of its MinHash signature with an earlier document that was kept.

    A document is compared with kept ones only, so whoever is named as its duplicate is still in the corpus; texts
    that are linked through a dropped one alone both stay. Texts without a word are never duplicates.
    """
    index = NearIndex(config)
    table = WordHashes()
    for batch in batched(documents, BATCH_DOCUMENTS):
        signature_DP = index.minhash.signatures(shingle((d.text for d in batch), config.ngram, table))
        keys = index.minhash.keys(signature_DP).tolist()
        for document, signature_P, key_B in zip(batch, signature_DP, keys, strict=True):
            yield index.judge(document, signature_P, key_B)


class NearIndex:
    """Signatures of the documents kept so far, found by any of their bands."""

    def __init__(self, config: NearDedup) -> None:
        self.minhash = MinHash(config.bands, config.rows)
        self._least = config.verify
        self._kept: list[tuple[str, NDArray[np.uint32]]] = []
        self._by_key: dict[int, list[int]] = {}

    def judge(self, document: Document, signature_P: NDArray[np.uint32], key_B: list[int]) -> Document | Dropped:
        """The document, remembered, or its removal in favour of the most similar kept one."""
        if signature_P[0] == EMPTY and (signature_P == EMPTY).all():
            return document
        candidates = {place for key in key_B for place in self._by_key.get(key, ())}
        if candidates:
            agree = {place: int((self._kept[place][1] == signature_P).sum()) for place in candidates}
            best = min(candidates, key=lambda place: (-agree[place], place))
            similarity = agree[best] / len(signature_P)
            if self._least is None or similarity >= self._least:
                detail = f"estimated Jaccard similarity {similarity:.2f} of word n-grams"
                return Dropped(document, "near_duplicate", self._kept[best][0], detail)
        for key in key_B:
            self._by_key.setdefault(key, []).append(len(self._kept))
        self._kept.append((document.id, signature_P.copy()))
        return document


def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Lists of up to `size` documents, in order."""
    documents = iter(documents)
    while batch := list(itertools.islice(documents, size)):
        yield batch
