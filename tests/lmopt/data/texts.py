"""Made-up English for tests: seeded, of any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lmopt.data import documents
from lmopt.data.documents import Document

_RNG = np.random.default_rng(7)
WORDS = sorted({"".join(_RNG.choice(list("abcdefghijklmnoprstuvwy"), _RNG.integers(2, 9))) for _ in range(800)})


def prose(seed: int, words: int = 120) -> str:
    """Sentences of made-up words."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(WORDS, words).tolist()
    for end in range(11, words, 12):
        chosen[end] += "."
    return " ".join(chosen)


def edited(text: str, share: float, seed: int = 0) -> str:
    """The text with a share of its words replaced."""
    rng = np.random.default_rng(seed)
    words = text.split(" ")
    for place in rng.choice(len(words), round(share * len(words)), replace=False):
        words[place] = f"new{place}"
    return " ".join(words)


def document(text: str, name: str = "0", domain: str = "web") -> Document:
    """A document with an id of its own."""
    return documents.make(text, domain=domain, source="file:test", provenance=name)


def numbered(texts: list[str]) -> list[Document]:
    """Documents in order, all different by id."""
    return [document(text, str(number)) for number, text in enumerate(texts)]


def write_jsonl(path: Path, texts: list[str]) -> str:
    """A corpus file; its source name."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return f"file:{path}"
