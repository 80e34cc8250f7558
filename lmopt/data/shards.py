"""From a corpus to training tokens: the data steps, then the tokenizer, then one memory-mapped file.

<out>/tokens.bin        token ids, little-endian uint16 or uint32; an end-of-text token behind every document
<out>/difficulty.bin    float32 a document, where the data steps measured it
<out>/dropped.parquet   documents that a step removed, with the reason and what they repeat
<out>/manifest.json     counts, type and hash; written last
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lmopt.data import corpus as corpora
from lmopt.data import needs, tokenizer
from lmopt.data.contamination import Protected
from lmopt.data.documents import Document, Dropped, Spent, is_synthetic
from lmopt.data.encoding import Encoder
from lmopt.data.heldout import HeldOut
from lmopt.data.scratch import Scratch, full_disk_said
from lmopt.data.stage import Mapper, Stage
from lmopt.data.storage import (
    DROPPED_COLUMNS,
    DataError,
    DocumentWriter,
    clear,
    documents,
    read_manifest,
    removed_on_error,
    write_manifest,
)
from lmopt.data.tally import StepCount, Tally
from lmopt.recipe import DataStep, builder
from lmopt.step import Step

TOKENS, DIFFICULTY, DROPPED = "tokens.bin", "difficulty.bin", "dropped.parquet"
AGAIN = "hint: build it again; a study begins anew in another folder (--out DIR)"
ENCODE_DOCUMENTS = 1024
"""Documents tokenised at a time, and a unit of progress."""


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The training tokens of one chain of data steps."""

    tokens: NDArray[np.unsignedinteger]
    """All tokens, memory-mapped and read-only: uint16 where the vocabulary allows, else uint32."""
    manifest: dict[str, Any]
    difficulty: NDArray[np.float32] | None = None
    """Of each document, in order; None where it was not measured. An end-of-text token ends each document."""

    @property
    def sha256(self) -> str:
        """Hash of the token file."""
        return self.manifest["sha256"]


def build(
    corpus: Path,
    steps: tuple[DataStep, ...],
    out: Path,
    *,
    mapper: Mapper | None = None,
    scratch: Scratch | None = None,
) -> Iterator[Step]:
    """Run a corpus through the data steps, in order, and tokenise what is left.

    A finished build of the same corpus and steps is left as it is; an interrupted one starts over.

    Args:
        mapper: where the steps' looking is done (`lmopt.data.workers`); what comes out is the same. Default: here.
        scratch: memory of a step's tables, and the folder for what exceeds it.

    Raises:
        DataError: the corpus is not finished, a step cannot work here, nothing is left of it, or the disk is full.
    """
    source = read_manifest(corpus, "corpus")
    made_from = {
        "corpus_sha256": source["documents_sha256"],
        "tokenizer_sha256": source["tokenizer_sha256"],
        "steps": [step.model_dump(mode="json") for step in steps],
    }
    if _finished(out, made_from):
        return
    rehearse(steps, mapper)
    clear(out, (TOKENS, DIFFICULTY, DROPPED))
    words = tokenizer.load(corpus / corpora.TOKENIZER)
    encoder, tally, digest, difficulty = Encoder(words), Tally(), hashlib.sha256(), array("f")
    end = np.array([tokenizer.end_of_text(words)], tokenizer.token_type(words))
    part = out / (TOKENS + ".part")
    with (
        full_disk_said(out),
        removed_on_error(part),
        DocumentWriter(out / DROPPED, DROPPED_COLUMNS) as dropped,
        part.open("wb") as file,
    ):
        kept = _through(corpus, steps, tally, dropped, mapper, scratch)
        for count, batch in enumerate(_portions(kept, tally), start=1):
            yield Step(count, _append(batch, encoder, end, file, digest, tally), notes=tally.notes())
            difficulty.extend(math.nan if d.difficulty is None else d.difficulty for d in batch)
        file.flush()
        os.fsync(file.fileno())
    if not tally.out("documents"):
        raise DataError(f"{out}: the data steps left no document\nhint: relax the steps, or use a larger corpus")
    _write_difficulty(np.array(difficulty, "<f4"), out)
    part.replace(out / TOKENS)
    facts = {"dtype": tokenizer.token_type(words).name, "end_of_text": tokenizer.end_of_text(words)}
    vocab = {"vocab": words.get_vocab_size()}
    write_manifest(
        out, {"kind": "shards", **made_from, **tally.facts(), **facts, **vocab, "sha256": digest.hexdigest()}
    )


def rehearse(steps: tuple[DataStep, ...], mapper: Mapper | None = None) -> None:
    """Find out before long work what cannot work: a package that a step needs, a function that it calls.

    Raises:
        DataError: it is absent, or fails on ordinary text.
    """
    for step in steps:
        if said := needs.of_step(step):
            raise DataError(f"data step {step.kind}: {said}")
        function = builder(step)
        if isinstance(function, Stage):
            function.rehearse(step, mapper)


def _write_difficulty(difficulty_D: NDArray[np.float32], out: Path) -> None:
    """Keep what the steps measured.

    Raises:
        DataError: some documents were measured and others were not.
    """
    unmeasured = int(np.isnan(difficulty_D).sum())
    if unmeasured == len(difficulty_D):
        return
    if unmeasured:
        raise DataError(
            f"{out}: {unmeasured} of {len(difficulty_D)} documents came behind the step `difficulty`, unmeasured\n"
            "hint: put it last"
        )
    difficulty_D.tofile(out / DIFFICULTY)


def _finished(out: Path, made_from: dict[str, Any]) -> bool:
    try:
        found = read_manifest(out, "shards")
    except DataError:
        return False
    return (out / TOKENS).is_file() and all(found.get(key) == value for key, value in made_from.items())


def _through(
    corpus: Path,
    steps: tuple[DataStep, ...],
    tally: Tally,
    dropped: DocumentWriter,
    mapper: Mapper | None,
    scratch: Scratch | None,
) -> Iterator[Document | Spent]:
    """The documents that pass every step; removals are counted and written on the way, costs are counted.

    What the last step spends is passed on, so that the caller sees that work is being done between two documents.
    """
    stream: Iterator[Any] = (tally.read(document) for document in documents(corpus / corpora.DOCUMENTS))
    for step in steps:
        count = tally.step(step.kind)
        function = builder(step)
        where = (mapper, scratch) if isinstance(function, Stage) else ()
        passed = function(step, count.entering(_documents(stream, tally)), *where)
        stream = _kept(passed, tally, dropped, count)
    if any(step.makes_text for step in steps):
        count = tally.step("held_out")
        stream = _kept(_protected(corpus, count.entering(stream)), tally, dropped, count)
    return stream


def _kept(
    items: Iterable[Document | Dropped | Spent], tally: Tally, dropped: DocumentWriter, count: StepCount
) -> Iterator[Document | Spent]:
    for item in items:
        count.leaving(item)
        if isinstance(item, Dropped):
            dropped.add(item)
            tally.drop(item)
        else:
            yield item


def _documents(items: Iterable[Document | Spent], tally: Tally) -> Iterator[Document]:
    """Documents alone: costs of an earlier step are counted, they are nothing that a later one works on."""
    for item in items:
        if isinstance(item, Spent):
            tally.spend(item)
        else:
            yield item


def _protected(corpus: Path, items: Iterable[Document | Spent]) -> Iterator[Document | Dropped | Spent]:
    """Synthetic texts lose what they share with validation and evaluation sets, as real ones did in the corpus."""
    facts, held = read_manifest(corpus, "corpus"), HeldOut()
    for name in facts["validation_order"]:
        for _ in held.add_distinct(documents(corpus / corpora.VALIDATION / f"{name}.parquet")):
            pass
    cuts = facts["decontamination"]
    unseen = Protected.load(corpus / corpora.PROTECTED, cuts["sha256"]) if cuts else None
    for synthetic, run in itertools.groupby(items, lambda item: isinstance(item, Document) and is_synthetic(item)):
        for item in held.without_duplicates(run) if synthetic else run:
            if synthetic and unseen and isinstance(item, Document):
                yield from unseen.clean([item])
            else:
                yield item


def _portions(items: Iterable[Document | Spent], tally: Tally) -> Iterator[list[Document]]:
    """Batches of documents, one whenever enough of them are there or models have worked."""
    batch: list[Document] = []
    for item in items:
        if isinstance(item, Spent):
            tally.spend(item)
        else:
            batch.append(item)
        if isinstance(item, Spent) or len(batch) == ENCODE_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _append(
    batch: list[Document],
    encoder: Encoder,
    end: NDArray[np.unsignedinteger],
    file: IO[bytes],
    digest: Any,
    tally: Tally,
) -> int:
    """Tokenise and write a batch; the number of tokens, end-of-text ones included."""
    pieces = []
    for document, ids in zip(batch, encoder.encode(document.text for document in batch), strict=True):
        tally.keep(document, len(ids) + 1)
        pieces += (ids, end)
    tokens = np.concatenate(pieces) if pieces else end[:0]
    data = tokens.astype(tokens.dtype.newbyteorder("<")).tobytes()
    digest.update(data)
    file.write(data)
    return len(tokens)


def open_shards(folder: Path) -> Shards:
    """Map a finished token file into memory, once it is read and found whole (a gigabyte takes about a second).

    Raises:
        DataError: the folder is not finished, or the file does not hold what its manifest says.
    """
    facts = read_manifest(folder, "shards")
    path, kind = folder / TOKENS, np.dtype(facts["dtype"]).newbyteorder("<")
    expected = facts["tokens"] * kind.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise DataError(f"{path}: {found} bytes, expected {expected} (truncated?)\n{AGAIN}")
    tokens = np.memmap(path, kind, mode="r") if expected else np.empty(0, kind)
    if hashlib.sha256(tokens).hexdigest() != facts["sha256"]:
        raise DataError(f"{path}: holds other tokens than were written (damaged?)\n{AGAIN}")
    measured = folder / DIFFICULTY
    return Shards(tokens, facts, np.fromfile(measured, "<f4") if measured.exists() else None)
