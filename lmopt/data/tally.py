"""Counting what goes through: documents, bytes and tokens by domain, removals by reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lmopt.data.documents import Document, Dropped


class Tally:
    """Counts of one build, in the order things happened."""

    def __init__(self) -> None:
        self.documents_in = 0
        self.bytes_in = 0
        self.dropped: Counter[str] = Counter()
        self.domains: dict[str, Counter[str]] = {}

    def read(self, document: Document) -> Document:
        """Count a document on its way in."""
        self.documents_in += 1
        self.bytes_in += len(document.text.encode())
        return document

    def drop(self, item: Dropped) -> None:
        """Count a removal."""
        self.dropped[item.reason] += 1

    def keep(self, document: Document, tokens: int | None = None) -> None:
        """Count a document on its way out, with its tokens where it is tokenised."""
        facts = self.domains.setdefault(document.domain, Counter())
        facts.update(documents=1, bytes=len(document.text.encode()))
        if tokens is not None:
            facts.update(tokens=tokens)

    def out(self, what: str) -> int:
        """`documents`, `bytes` or `tokens` of all domains together."""
        return sum(facts[what] for facts in self.domains.values())

    def facts(self) -> dict[str, Any]:
        """All counts, for a manifest; without tokens where nothing was tokenised."""
        counted = any("tokens" in facts for facts in self.domains.values())
        return {
            "documents_in": self.documents_in,
            "documents_out": self.out("documents"),
            "bytes_in": self.bytes_in,
            "bytes_out": self.out("bytes"),
            **({"tokens": self.out("tokens")} if counted else {}),
            "dropped": dict(sorted(self.dropped.items())),
            "domains": {name: dict(self.domains[name]) for name in sorted(self.domains)},
        }

    def notes(self) -> dict[str, float]:
        """The counts that a progress line shows."""
        return {
            "documents": float(self.documents_in),
            "kept_documents": float(self.out("documents")),
            "bytes": float(self.bytes_in),
            "dropped": float(self.dropped.total()),
        }
