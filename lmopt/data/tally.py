"""Counting what goes through: documents, bytes and tokens by domain, removals by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lmopt.data.documents import Document, Dropped, Spent, is_synthetic


@dataclass
class StepCount:
    """What went through one data step."""

    kind: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    flops: float = 0.0

    def entering(self, items: Iterable[Any]) -> Iterator[Any]:
        """Count documents on their way in."""
        for item in items:
            if isinstance(item, Document):
                self.documents_in += 1
                self.bytes_in += len(item.text.encode())
            yield item

    def leaving(self, item: Document | Dropped | Spent) -> None:
        """Count what the step yields."""
        if isinstance(item, Dropped):
            self.dropped[item.reason] += 1
        elif isinstance(item, Spent):
            self.flops += item.flops
        else:
            self.documents_out += 1
            self.bytes_out += len(item.text.encode())


class Tally:
    """Counts of one build, in the order things happened."""

    def __init__(self) -> None:
        self.documents_in = 0
        self.bytes_in = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_domains: dict[str, Counter[str]] = {}
        self.domains: dict[str, Counter[str]] = {}
        self.synthetic: dict[str, Counter[str]] = {}
        self.passed: list[StepCount] = []
        self.flops = 0.0
        self.earlier_s = 0.0

    def step(self, kind: str) -> StepCount:
        """The count of the next data step."""
        self.passed.append(StepCount(kind))
        return self.passed[-1]

    def read(self, document: Document) -> Document:
        """Count a document on its way in."""
        self.documents_in += 1
        self.bytes_in += len(document.text.encode())
        return document

    def drop(self, item: Dropped) -> None:
        """Count a removal."""
        self.dropped[item.reason] += 1
        self.dropped_domains.setdefault(item.document.domain, Counter())[item.reason] += 1

    def spend(self, item: Spent) -> None:
        """Count what models cost."""
        self.flops += item.flops
        self.earlier_s += item.earlier_s

    def keep(self, document: Document, tokens: int | None = None) -> None:
        """Count a document on its way out, with its tokens where it is tokenised."""
        facts = self.domains.setdefault(document.domain, Counter())
        size = len(document.text.encode())
        facts.update(documents=1, bytes=size)
        if is_synthetic(document):
            self.synthetic.setdefault(document.domain, Counter()).update(documents=1, bytes=size)
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
            "dropped_domains": {
                name: dict(sorted(found.items())) for name, found in sorted(self.dropped_domains.items())
            },
            "domains": {name: dict(self.domains[name]) for name in sorted(self.domains)},
            "synthetic": {name: dict(self.synthetic[name]) for name in sorted(self.synthetic)},
            "passed": [{**asdict(count), "dropped": dict(sorted(count.dropped.items()))} for count in self.passed],
            "flops": self.flops,
            "earlier_s": self.earlier_s,
        }

    def notes(self) -> dict[str, float]:
        """The counts that a progress line shows."""
        return {
            "documents": float(self.documents_in),
            "kept_documents": float(self.out("documents")),
            "bytes": float(self.bytes_in),
            "dropped": float(self.dropped.total()),
            "synthetic_documents": float(sum(facts["documents"] for facts in self.synthetic.values())),
            "flops": self.flops,
        }
