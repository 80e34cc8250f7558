"""How hard documents are: four measures, of a text by itself or under a small model. Higher is harder."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lmopt.data import storage
from lmopt.data.documents import Document, Spent
from lmopt.data.shingles import words
from lmopt.data.stage import batches
from lmopt.techniques.difficulty import Difficulty, SmallModel

BATCH_DOCUMENTS = 64
LONGEST = 20_000
"""Characters of a document that are measured: its beginning stands for it."""
ZLIB_LEVEL = 6
MTLD_RATIO = 0.72
"""McCarthy & Jarvis 2010: a stretch ends where its type-token ratio falls to this."""
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)|\n\s*\n")
_VOWELS = re.compile(rb"[aeiouy]+")


def build(config: Difficulty, documents: Iterable[Document]) -> Iterator[Document | Spent]:
    """All documents in order, each with its difficulty. By loss, they wait on disk until the model is trained."""
    if config.by == "loss":
        yield from _by_loss(config, documents)
        return
    measure = MEASURES[config.by]
    for document in documents:
        yield dataclasses.replace(document, difficulty=measure(document.text[:LONGEST]))


def compression(text: str) -> float:
    """Bytes after zlib / bytes before. Short texts compress badly, whatever they say."""
    data = text.encode()
    return len(zlib.compress(data, ZLIB_LEVEL)) / max(len(data), 1)


def diversity(text: str) -> float:
    """MTLD: words / stretches, read forwards and backwards and averaged; an unfinished stretch counts in part."""
    found = words(text)
    return (_mtld(found) + _mtld(found[::-1])) / 2 if found else 0.0


def _mtld(found: list[bytes]) -> float:
    stretches, seen, length, ratio = 0.0, set[bytes](), 0, 1.0
    for word in found:
        seen.add(word)
        length += 1
        ratio = len(seen) / length
        if ratio <= MTLD_RATIO:
            stretches, length, ratio = stretches + 1, 0, 1.0
            seen.clear()
    stretches += (1 - ratio) / (1 - MTLD_RATIO)
    return len(found) / stretches if stretches else float(len(found))


def readability(text: str) -> float:
    """1.015 words / sentences + 84.6 syllables / words (Flesch 1948: reading ease is 206.835 less this)."""
    found = words(text)
    if not found:
        return 0.0
    sentences = max(len(_SENTENCE.findall(text.strip())), 1)
    return 1.015 * len(found) / sentences + 84.6 * sum(map(syllables, found)) / len(found)


def syllables(word: bytes) -> int:
    """Groups of vowels, a silent final e left out, at least one: an estimate for English, as all such formulas are."""
    count = len(_VOWELS.findall(word))
    silent = word.endswith(b"e") and not word.endswith((b"le", b"ee"))
    return max(count - silent, 1)


MEASURES: dict[str, Callable[[str], float]] = {
    "compression": compression,
    "diversity": diversity,
    "readability": readability,
}
"""What `by` names, of a text by itself."""


def _by_loss(config: Difficulty, documents: Iterable[Document]) -> Iterator[Document | Spent]:
    from lmopt.data import reference

    with tempfile.TemporaryDirectory(prefix="lmbench-") as folder:
        aside = Path(folder) / "documents.parquet"
        with storage.DocumentWriter(aside) as writer:
            for document in documents:
                writer.add(document)
        shape = config.reference or SmallModel()
        trained = reference.train(shape, storage.documents(aside), seed=config.seed)
        yield Spent(trained.train_flops)
        for batch in batches(storage.documents(aside), BATCH_DOCUMENTS):
            bits, flops = trained.bits_per_byte([document.text for document in batch])
            yield Spent(flops)
            for document, value in zip(batch, bits, strict=True):
                yield dataclasses.replace(document, difficulty=value)
