"""Validation sets of a built corpus: held-out documents, tokenised, with what bits per byte need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lmopt.data import corpus as corpora
from lmopt.data import storage, tokenizer
from lmopt.data.documents import Document
from lmopt.data.encoding import Encoder
from lmopt.data.storage import DataError


@dataclass(frozen=True, slots=True)
class ValidationDocument:
    """One held-out text."""

    id: str
    domain: str
    size_bytes: int
    """UTF-8 bytes of the text: the denominator of bits per byte."""
    tokens: NDArray[np.unsignedinteger]
    """Token ids, without end-of-text."""


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """Held-out documents in a fixed order."""

    name: str
    documents: tuple[ValidationDocument, ...]
    end_of_text: int
    """Id of the token between documents: what a model has seen before a document begins."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains that occur, sorted."""
        return tuple(sorted({document.domain for document in self.documents}))

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(document.size_bytes for document in self.documents)


def names(corpus: Path) -> tuple[str, ...]:
    """Names of a corpus's validation sets, in the order the corpus's description has them."""
    return tuple(storage.read_manifest(corpus, "corpus")["validation_order"])


def documents(corpus: Path, name: str) -> Iterator[Document]:
    """The texts of a validation set.

    Raises:
        DataError: the corpus has no set of that name.
    """
    known = names(corpus)
    if name not in known:
        raise DataError(f"{corpus}: no validation set {name!r}; it has {', '.join(known)}")
    return storage.documents(corpus / corpora.VALIDATION / f"{name}.parquet")


def load(corpus: Path, name: str) -> ValidationSet:
    """A validation set, tokenised with the corpus's tokenizer.

    Raises:
        DataError: the corpus has no set of that name, or is not finished.
    """
    words = tokenizer.load(corpus / corpora.TOKENIZER)
    return ValidationSet(name, tokenised(corpus, name, words), tokenizer.end_of_text(words))


def tokenised(corpus: Path, name: str, words: Tokenizer) -> tuple[ValidationDocument, ...]:
    """The documents of a validation set in the tokens of any tokenizer.

    Raises:
        DataError: the corpus has no set of that name, or is not finished.
    """
    texts = list(documents(corpus, name))
    ids = Encoder(words).encode(document.text for document in texts)
    return tuple(
        ValidationDocument(document.id, document.domain, len(document.text.encode()), tokens)
        for document, tokens in zip(texts, ids, strict=True)
    )
