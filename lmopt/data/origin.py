"""What a corpus is made from: its sources, each fetched once, and read again for everything that is taken from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmopt.data import reading, sources
from lmopt.data.cache import Fetched
from lmopt.data.documents import Document
from lmopt.data.labels import Labels
from lmopt.data.spec import Data, Holdout, SourceOptions


def all_sources(data: Data) -> tuple[SourceOptions, ...]:
    """Of the training text, then of the validation sets that have one of their own."""
    return (*data.corpus, *(entry for entry in data.validation if not isinstance(entry, Holdout)))


@dataclass(frozen=True, slots=True)
class Origin:
    """The sources of a corpus, as far as they were fetched."""

    data: Data
    progress: Callable[[str], None] | None = None
    """Is told in one line which source is being fetched or read."""
    fetched: dict[str, Fetched] = field(default_factory=dict[str, Fetched])
    """Name of a source (`_asked`) -> where it lies."""
    labels: dict[tuple[str, str], Labels] = field(default_factory=dict[tuple[str, str], Labels])
    """(source, field of the labels) -> what the labels became."""

    def fetch(self, options: SourceOptions, cache: Path | None) -> Fetched:
        """Bring a source to this machine, where it is not here yet.

        Raises:
            SourceError: it cannot be had.
        """
        found = self.fetched[_asked(options)] = sources.fetch(
            options.source,
            cache,
            progress=self.progress,
            field=options.field,
            limit_bytes=None if options.limit is None else int(options.limit),
            domain_field=options.domain_field,
        )
        return found

    def read(self, options: SourceOptions) -> Iterator[Document]:
        """The documents of one source.

        Raises:
            SourceError: it cannot be read.
        """
        name = _asked(options)
        labels = None
        if options.domain_field is not None:
            asked = (name, options.domain_field)
            labels = self.labels.setdefault(asked, Labels(options.source, options.domain_field))
        return reading.read(self.fetched[name], options, labels)

    def documents(self) -> Iterator[Document]:
        """All documents of the training sources, source by source."""
        for place, options in enumerate(self.data.corpus, start=1):
            if self.progress:
                self.progress(f"reading {options.source} ({place} of {len(self.data.corpus)})")
            yield from self.read(options)

    def identity(self, protected: Mapping[str, Sequence[str]]) -> str:
        """Hash of the description, of every source's content and of the texts that are protected: 64 hex digits."""
        described = {
            "data": self.data.model_dump(mode="json"),
            "sources": {name: found.sha256 for name, found in self.fetched.items()},
            "protected": {name: _digest(texts) for name, texts in protected.items()} if self.data.decontaminate else {},
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, dict[str, Any]]:
        """Of each source, for a manifest: version, size, hash and licence; files that were not read, labels changed."""
        facts: dict[str, dict[str, Any]] = {
            name: {"version": f.version, "size_bytes": f.size_bytes, "sha256": f.sha256, "licence": f.licence}
            for name, f in self.fetched.items()
        }
        for name, f in self.fetched.items():
            if unread := reading.left_out(f):
                facts[name]["left_out"] = unread
        for (name, _), labels in self.labels.items():
            facts[name]["labels"] = facts[name].get("labels", {}) | labels.changed()
        return facts


def _asked(options: SourceOptions) -> str:
    """A source's name; of a hub data set, of which more than one part may be taken, with the part."""
    if not options.source.startswith("hf:"):
        return options.source
    fields = options.field if options.domain_field is None else f"{options.field}, {options.domain_field}"
    return f"{options.source} ({fields}, {options.limit:.0f} bytes)"


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
