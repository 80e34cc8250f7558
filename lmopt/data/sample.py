"""An even part of a corpus's training text, in tokens: for what wants to know the text and need not read all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmopt.data import corpus as corpora
from lmopt.data import storage, tokenizer
from lmopt.data.encoding import Encoder


def tokens(corpus: Path, *, most_bytes: int) -> NDArray[np.unsignedinteger]:
    """Training documents spread evenly over a corpus, in its order, with what a model reads between two texts.

    That is the end-of-text token, and what the tokenizer sets before every text: of each as far as it has one.

    Args:
        most_bytes: of UTF-8 text, about: a corpus that holds no more is taken whole.

    Raises:
        DataError: the corpus is not finished, or damaged.
    """
    held_bytes = int(storage.read_manifest(corpus, "corpus")["bytes_out"])
    words = tokenizer.load(corpus / corpora.TOKENIZER)
    ends = [tokenizer.end_of_text(words)] if words.token_to_id(tokenizer.END_OF_TEXT) is not None else []
    between = np.array([*ends, *tokenizer.opening(words)], tokenizer.token_type(words))
    parts: list[NDArray[np.unsignedinteger]] = []
    for ids in Encoder(words).encode(_evenly(corpus, min(1.0, most_bytes / held_bytes))):
        parts += [ids, between]
    return np.concatenate(parts)


def _evenly(corpus: Path, share: float) -> Iterator[str]:
    """The first document, and then whenever less than the share of the bytes read so far was taken."""
    read = taken = 0
    for document in storage.documents(corpus / corpora.DOCUMENTS):
        size = len(document.text.encode())
        if taken <= read * share:
            taken += size
            yield document.text
        read += size
