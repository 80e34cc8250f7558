"""Decontamination: training text that repeats a validation or evaluation set is cut out of it.

The rule of GPT-3 (Brown et al., arXiv 2005.14165, appendix C): where an n-gram of a set occurs, it is cut out with 200
characters on either side; pieces under 200 characters go; a document over ten cuts goes whole. Its exception for
n-grams of more than ten documents is left out: a protected text is protected, however common.

Letters: W words of a batch, N protected n-grams.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmopt.data.documents import Document, Dropped
from lmopt.data.hashing import windows
from lmopt.data.pieces import pieces
from lmopt.data.shingles import HashedWords, WordHashes, hash_words
from lmopt.data.spec import Decontaminate
from lmopt.data.stage import batches
from lmopt.data.storage import DataError

_WORD = re.compile(r"\w+")
_FILTER_BITS = 24


@dataclass(frozen=True, slots=True)
class _Grams:
    """The protected n-grams of one length."""

    hash_N: NDArray[np.uint64]
    """Sorted."""
    owner_N: NDArray[np.int64]
    """Number of the first set that has it."""
    maybe: NDArray[np.bool_]
    """By the upper bits of a hash: whether any is there. Spares most words the search."""


class Protected:
    """The n-grams of the sets that must stay unseen, and what was cut because of them."""

    def __init__(self, config: Decontaminate, sets: Mapping[str, Iterable[str]]) -> None:
        """Texts of fewer than n words are protected whole, where they have `config.shortest` words or more."""
        self._config = config
        self._table = WordHashes()
        self.names = tuple(sets)
        self.texts: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.documents_cut: Counter[str] = Counter()
        self.documents_dropped: Counter[str] = Counter()
        found: dict[int, list[tuple[NDArray[np.uint64], int]]] = {}
        for number, (name, texts) in enumerate(sets.items()):
            for n, hashes in self._grams_of(name, texts):
                found.setdefault(n, []).append((hashes, number))
        self._grams = {n: _index(parts) for n, parts in sorted(found.items())}

    def save(self, path: Path) -> str:
        """Write what is protected, without the texts; returns the SHA-256 of the file."""
        arrays: dict[str, NDArray[Any]] = {
            "rule": np.array(self._config.model_dump_json()),
            "names": np.array(self.names, dtype=str),
        }
        for n, grams in self._grams.items():
            arrays |= {f"hash_{n}": grams.hash_N, f"owner_{n}": grams.owner_N.astype(np.int32)}
        written = io.BytesIO()
        np.savez(written, allow_pickle=False, **arrays)
        path.write_bytes(written.getvalue())
        return hashlib.sha256(written.getvalue()).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str) -> Protected:
        """What `save` wrote.

        Raises:
            DataError: the file is absent or another one.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})\nhint: build the corpus again") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(f"{path}: not what the corpus was built with\nhint: build it again")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = arrays["names"].tolist()
            found = cls(Decontaminate.model_validate_json(str(arrays["rule"])), dict.fromkeys(names, ()))
            lengths = sorted(int(key.removeprefix("hash_")) for key in arrays if key.startswith("hash_"))
            found._grams = {n: _sorted_index(arrays[f"hash_{n}"], arrays[f"owner_{n}"]) for n in lengths}
        return found

    def _grams_of(self, name: str, texts: Iterable[str]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        found = hash_words(texts, self._table)
        size_D = np.diff(found.offsets)
        self.texts[name] = len(size_D)
        length_D = np.minimum(size_D, self._config.ngram)
        for n in np.unique(length_D[length_D >= min(self._config.shortest, self._config.ngram)]).tolist():
            inside = np.repeat(length_D == n, size_D) & (_left(found) >= n)
            yield n, np.unique(windows(found.hash_W, n)[np.flatnonzero(inside)])

    def clean(self, documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        """Training documents without what they share with the sets, or their removals."""
        if not self._grams:
            yield from documents
            return
        for batch in batches(documents):
            hits = self._hits(batch)
            for number, document in enumerate(batch):
                yield self._cut(document, hits[number]) if number in hits else document

    def _hits(self, batch: list[Document]) -> dict[int, list[tuple[int, int, int]]]:
        """Document -> (first word, words, set) of each n-gram that it shares."""
        hits: dict[int, list[tuple[int, int, int]]] = {}
        found = hash_words((document.text for document in batch), self._table)
        for n, grams in self._grams.items():
            for place, owner in _matches(windows(found.hash_W, n), grams):
                number = int(np.searchsorted(found.offsets, place, side="right")) - 1
                if place + n <= found.offsets[number + 1]:
                    hits.setdefault(number, []).append((place - int(found.offsets[number]), n, owner))
        return hits

    def _cut(self, document: Document, hits: list[tuple[int, int, int]]) -> Document | Dropped:
        edge_W2 = _word_edges(document.text)
        side = self._config.side
        spans: list[list[int]] = []
        for first, n, owner in sorted(hits):
            begin = max(int(edge_W2[first, 0]) - side, 0)
            end = min(int(edge_W2[first + n - 1, 1]) + side, len(document.text))
            if spans and begin <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([begin, end, owner])
        owners = Counter(self.names[owner] for _, _, owner in spans)
        self.cuts.update(owners)
        kept = self._pieces(document.text, spans)
        if len(spans) <= self._config.most_cuts and kept:
            self.documents_cut.update(owners.keys())
            return replace(document, text="\n\n".join(kept))
        self.documents_dropped.update(owners.keys())
        said = f"{len(spans)} cuts" if len(spans) > 1 else "a cut"
        left = "" if kept else f", nothing of {self._config.shortest_piece} characters left"
        detail = f"{said}{left}: n-grams of {', '.join(owners)}"
        return Dropped(document, "contaminated", None, detail)

    def _pieces(self, text: str, spans: list[list[int]]) -> list[str]:
        edges = [0, *(edge for begin, end, _ in spans for edge in (begin, end)), len(text)]
        pieces = (text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))
        return [piece for piece in pieces if len(piece) >= max(self._config.shortest_piece, 1)]

    def facts(self) -> dict[str, Any]:
        """For each set: its texts, the cuts made for it, and the documents that were cut or dropped with them."""
        return {
            name: {
                "texts": self.texts[name],
                "cuts": self.cuts[name],
                "documents_cut": self.documents_cut[name],
                "documents_dropped": self.documents_dropped[name],
            }
            for name in self.names
        }


def _index(parts: list[tuple[NDArray[np.uint64], int]]) -> _Grams:
    hashes = np.concatenate([hashes for hashes, _ in parts])
    owners = np.concatenate([np.full(len(hashes), number) for hashes, number in parts])
    hash_N, first = np.unique(hashes, return_index=True)
    return _sorted_index(hash_N, owners[first])


def _sorted_index(hash_N: NDArray[np.uint64], owner_N: NDArray[np.int64]) -> _Grams:
    maybe = np.zeros(1 << _FILTER_BITS, np.bool_)
    maybe[hash_N >> np.uint64(64 - _FILTER_BITS)] = True
    return _Grams(hash_N, owner_N, maybe)


def _left(found: HashedWords) -> NDArray[np.int64]:
    """Words from each word to the end of its text, itself included."""
    return np.repeat(found.offsets[1:], np.diff(found.offsets)) - np.arange(len(found.hash_W))


def _matches(hash_W: NDArray[np.uint64], grams: _Grams) -> Iterator[tuple[int, int]]:
    """(place, set) of the windows that are protected; they may reach from one document into the next."""
    places = np.flatnonzero(grams.maybe[hash_W >> np.uint64(64 - _FILTER_BITS)])
    index = np.minimum(np.searchsorted(grams.hash_N, hash_W[places]), len(grams.hash_N) - 1)
    equal = grams.hash_N[index] == hash_W[places]
    yield from zip(places[equal].tolist(), grams.owner_N[index[equal]].tolist(), strict=True)


def _word_edges(text: str) -> NDArray[np.int64]:
    """edge_W2: where each word begins and ends, the words being those of the case-folded form (`shingles.words`)."""
    found: list[NDArray[np.int64]] = []
    first = 0
    for piece in pieces(text):
        folded = piece.casefold()
        edges = (edge for word in _WORD.finditer(folded) for edge in word.span())
        edge_W2 = np.fromiter(edges, np.int64).reshape(-1, 2)
        if len(folded) != len(piece):
            grown = np.cumsum([len(character.casefold()) for character in piece])
            edge_W2[:, 0] = np.searchsorted(grown, edge_W2[:, 0] + 1)
            edge_W2[:, 1] = np.searchsorted(grown, edge_W2[:, 1]) + 1
        found.append(edge_W2 + first)
        first += len(piece)
    return np.concatenate(found)
