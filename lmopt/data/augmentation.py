"""Synthetic text for domains that have little: how much is wanted, of which documents, what is kept of it.

Documents pass through at once and are set aside on disk; behind the last one shares are known, and documents of the
domains that fall short are remade, chosen by hash, until the target, the cap or the last document is reached. None of
these is passed: the text that would is cut behind its last sentence that fits, or left out.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lmopt.data import storage
from lmopt.data.acceptance import rejection
from lmopt.data.documents import Document, Dropped, Spent, fingerprint, is_synthetic, remade
from lmopt.data.journal import Journal, Made, path_of
from lmopt.data.sentences import excerpt, within
from lmopt.techniques.augmentation import Augmentation

BATCH_CHARACTERS = 16_000
"""Text remade at a time, in whole documents, after which it is on disk."""
SPARE = 1.25
"""More documents are chosen than would do if none were rejected."""
LEAST_REACH = 0.05
"""A round goes at least so much further in the order of hashes."""
PREPARED = ""
"""Key of the journal under which it is written what making the generator itself took."""


class Generator(Protocol):
    """Makes new texts of old ones. What it makes depends on the text and its settings, and on what it learnt from."""

    name: str
    """What the provenance says."""
    settings: Mapping[str, Any]
    """Everything that what it makes depends on, versions of models included."""
    learns: bool
    """It is trained on the documents that it is prepared with: other documents, other texts."""

    def prepare(self, documents: Iterator[Document]) -> float:
        """Get ready, once, before the first text; FLOPs that it took (training a model on these documents)."""
        ...

    def make(self, texts: list[str]) -> list[tuple[str, float]]:
        """(new text, FLOPs) of each text."""
        ...


def augment(
    config: Augmentation, documents: Iterable[Document], generator: Generator
) -> Iterator[Document | Dropped | Spent]:
    """All documents in order, then the synthetic ones; rejected texts come as removals in favour of their originals.

    Raises:
        DataError: behind the last document, when none was of a domain that `config.domains` names.
    """
    with tempfile.TemporaryDirectory(prefix="lmbench-") as folder:
        aside, sizes = Path(folder) / "documents.parquet", Counter[str]()
        with storage.DocumentWriter(aside) as writer:
            for document in documents:
                writer.add(document)
                sizes[document.domain] += len(document.text.encode())
                yield document
        if unknown := sorted(set(config.domains or ()) - sizes.keys()):
            raise storage.DataError(
                f"{config.kind}: no document of domain {', '.join(unknown)} came to this step\n"
                f"hint: its domains are {', '.join(sorted(sizes))}"
            )
        wanted = shortfall(sizes, config)
        if wanted:
            learnt = {"documents": writer.digest.hexdigest()} if generator.learns else {}
            path = path_of(config.kind, {**generator.settings, **learnt})
            with Journal(path) as journal:
                yield from _Filling(config, generator, aside, wanted, sizes).run(journal)


def shortfall(sizes: Mapping[str, int], config: Augmentation) -> dict[str, float]:
    """Bytes of synthetic text that each under-represented domain lacks.

    With U the domains below, each shall hold `aim` of the grown corpus T': its s_d = aim T' - d, where T' = T_others /
    (1 - |U| aim). Where the targets of all of U together would leave the others less than half, they are lowered
    alike. Then the cap, s_d <= cap / (1 - cap) d, and the limit, which lowers all alike.
    """
    total = sum(sizes.values())
    low = [d for d in sorted(sizes) if sizes[d] < config.below * total and d in (config.domains or sizes)]
    others = total - sum(sizes[d] for d in low)
    if not low or not others:
        return {}
    aim = min(config.aim, 0.5 / len(low))
    grown = others / (1 - len(low) * aim)
    wanted = {d: min(aim * grown - sizes[d], config.cap / (1 - config.cap) * sizes[d]) for d in low}
    wanted = {d: size for d, size in wanted.items() if size > 0}
    scale = 1.0 if config.limit is None else min(1.0, config.limit / max(sum(wanted.values()), 1))
    return {d: scale * size for d, size in wanted.items()}


class _Filling:
    """One corpus being filled up."""

    def __init__(
        self, config: Augmentation, generator: Generator, aside: Path, wanted: dict[str, float], sizes: Counter[str]
    ) -> None:
        self.config, self.generator, self.aside = config, generator, aside
        self.wanted, self.sizes = wanted, sizes
        self.made: Counter[str] = Counter()
        self.full: set[str] = set()
        """Domains whose next text would be too long for what is left."""
        self.seen: set[bytes] = set()
        self.ready = False
        self.paid = False

    def run(self, journal: Journal) -> Iterator[Document | Dropped | Spent]:
        """Rounds over the documents set aside, each taking those with larger hashes, until nothing is short."""
        reach = dict.fromkeys(self.wanted, 0.0)
        while open_ := [d for d in reach if reach[d] < 1 and self._room(d) > 0]:
            until = {d: self._next(d, reach[d]) for d in open_}
            for batch in _batches(self._chosen(reach, until)):
                yield from self._remake(batch, journal)
            reach |= until

    def _next(self, domain: str, reached: float) -> float:
        """How far to go in the order of hashes: as far as the yield so far lets expect to be enough."""
        if not reached:
            return min(1.0, SPARE * self.wanted[domain] / self.sizes[domain])
        if not self.made[domain]:
            return 1.0
        needed = SPARE * (self.wanted[domain] - self.made[domain]) * reached / self.made[domain]
        return min(1.0, reached + max(needed, LEAST_REACH))

    def _chosen(self, reach: Mapping[str, float], until: Mapping[str, float]) -> Iterator[tuple[Document, str]]:
        """(document, the part of it that is remade) of those whose hashes lie in this round's reach."""
        for document in storage.documents(self.aside):
            domain = document.domain
            if domain in until and reach[domain] <= _place(document, self.config.seed) < until[domain]:
                text = excerpt(document.text, self.config.longest)
                known = fingerprint(text)
                if (
                    self._room(domain) > 0
                    and len(text) >= self.config.shortest
                    and not is_synthetic(document)
                    and known not in self.seen
                ):
                    self.seen.add(known)
                    yield document, text

    def _remake(self, batch: list[tuple[Document, str]], journal: Journal) -> Iterator[Document | Dropped | Spent]:
        texts = [text for _, text in batch]
        keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if journal.get(key) is None}
        yield from self._prepare(journal, needed=bool(missing))
        if missing:
            started_s = time.perf_counter()
            found = self.generator.make(list(missing.values()))
            each_s = (time.perf_counter() - started_s) / len(missing)
            journal.add({key: Made(text, flops, each_s) for key, (text, flops) in zip(missing, found, strict=True)})
        for (document, text), key in zip(batch, keys, strict=True):
            made = journal.get(key)
            assert made is not None
            yield Spent(made.flops, 0.0 if key in missing else made.seconds)
            yield from self._judged(document, text, made.text)

    def _prepare(self, journal: Journal, *, needed: bool) -> Iterator[Spent]:
        """Make the generator ready when there is something to make; its FLOPs are charged once, ready or not.

        Seconds may count twice: where it was made before, is charged for that, and must be made again.
        """
        known = journal.get(PREPARED)
        if needed and not self.ready:
            started_s = time.perf_counter()
            flops = self.generator.prepare(storage.documents(self.aside))
            self.ready = True
            if known is None:
                journal.add({PREPARED: Made("", flops, time.perf_counter() - started_s)})
            if not self.paid:
                yield Spent(flops)
        elif known is not None and not self.paid:
            yield Spent(known.flops, known.seconds)
        self.paid = True

    def _judged(self, original: Document, source: str, text: str) -> Iterator[Document | Dropped]:
        document = remade(original, text, self.generator.name)
        rejected = rejection(source, document.text, self.config)
        if rejected is not None:
            yield Dropped(document, rejected[0], original.id, rejected[1])
        elif (room := self._room(original.domain)) > 0:
            if len(document.text.encode()) > room:
                self.full.add(original.domain)
                document = replace(document, text=_cut(document.text, room))
                if len(document.text) < self.config.shortest:
                    return
            self.made[original.domain] += len(document.text.encode())
            yield document

    def _room(self, domain: str) -> int:
        """Bytes that may still be added to a domain."""
        return 0 if domain in self.full else int(self.wanted[domain]) - self.made[domain]


def _cut(text: str, most_bytes: int) -> str:
    """The whole sentences of a text's beginning that so many bytes hold."""
    return within(text, len(text.encode()[:most_bytes].decode(errors="ignore")))


def _batches(chosen: Iterable[tuple[Document, str]]) -> Iterator[list[tuple[Document, str]]]:
    """Whole documents of at least BATCH_CHARACTERS together."""
    batch: list[tuple[Document, str]] = []
    for document, text in chosen:
        batch.append((document, text))
        if sum(len(text) for _, text in batch) >= BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def _place(document: Document, seed: int) -> float:
    """A number in [0, 1), the same for a document whenever and wherever it is asked for."""
    digest = hashlib.blake2b(f"{seed}\0{document.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
