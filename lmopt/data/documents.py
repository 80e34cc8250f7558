"""One record of text, and what happens to it: kept as it is, or dropped with a reason."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from lmopt.data.pieces import pieces

_LINE_END = re.compile(r"\r\n?")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin."""

    id: str
    """16 hex digits, from `source` and `provenance`."""
    text: str
    """Valid Unicode without lone surrogates, lines ended by a line feed."""
    domain: str
    """Label by which losses are reported apart."""
    source: str
    """The source it was read from, for example `pypi:evals==3.0.1.post1`."""
    provenance: str
    """Where inside the source: a file and a line, or how the text was made."""
    difficulty: float | None = None
    """How hard it is to learn from, higher is harder; None where no step measured it."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that a step removed."""

    document: Document
    reason: str
    """One word a kind of removal, countable: `exact_duplicate`, `near_duplicate`."""
    kept: str | None = None
    """Id of the document that was kept in its place, where there is one."""
    detail: str = ""
    """What was measured, for a person who audits the removal."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a step spent on models that make or judge text, told as the work is done."""

    flops: float
    earlier_s: float = 0.0
    """Seconds that an earlier process spent on it, whose result was found again; 0 for work done just now."""


SYNTHETIC = "synthetic:"
"""How the provenance of a text begins that a model made."""


def make(text: str, *, domain: str, source: str, provenance: str) -> Document:
    """A document from raw text: lone surrogates replaced, line ends unified, its id derived from its origin."""
    clean = _LINE_END.sub("\n", text).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    digest = hashlib.blake2b(f"{source}\0{provenance}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Document(digest, clean, domain, source, provenance)


def remade(original: Document, text: str, how: str) -> Document:
    """A synthetic document made of another one: same domain and source, its provenance says how and of which."""
    provenance = f"{SYNTHETIC}{how} of {original.id}"
    return make(text, domain=original.domain, source=original.source, provenance=provenance)


def is_synthetic(document: Document) -> bool:
    """Whether a model made the text."""
    return document.provenance.startswith(SYNTHETIC)


def normalised(text: str) -> str:
    """Text as exact deduplication sees it: compatibility forms (NFKC), case and runs of white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> bytes:
    """16-byte BLAKE2b hash of the normalised text; equal for texts that differ only in case and spacing."""
    digest = hashlib.blake2b(digest_size=16)
    gap = b""
    for piece in pieces(text):
        if found := normalised(piece):
            digest.update(gap + found.encode("utf-8", "surrogatepass"))
            gap = b" "
    return digest.digest()
