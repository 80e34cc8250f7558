"""From sources to a corpus: fetch, hold out, protect the held-out text, train the tokenizer.

<out>/documents.parquet          training documents
<out>/validation/<name>.parquet  one file a validation set
<out>/dropped.parquet            documents that were removed, with the reason and what they repeat
<out>/tokenizer.json             trained on the training documents only
<out>/manifest.json              counts and hashes; written last
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmopt.data import tokenizer
from lmopt.data.contamination import Protected
from lmopt.data.documents import Document, Dropped, fingerprint
from lmopt.data.encoding import Encoder
from lmopt.data.heldout import HeldOut, is_held_out
from lmopt.data.origin import Origin, all_sources
from lmopt.data.scratch import full_disk_said
from lmopt.data.spec import Bpe, Data, GivenTokenizer, Holdout
from lmopt.data.storage import (
    DROPPED_COLUMNS,
    DataError,
    DocumentWriter,
    clear,
    documents,
    read_manifest,
    write_manifest,
)
from lmopt.data.tally import Tally
from lmopt.step import Step

DOCUMENTS, DROPPED, TOKENIZER, VALIDATION = "documents.parquet", "dropped.parquet", "tokenizer.json", "validation"
PROTECTED = "protected.npz"
"""N-grams of the validation and evaluation sets, for text that steps make later."""
STEP_DOCUMENTS = 2048
"""Documents a unit of progress."""
FEW_DOCUMENTS = 50
"""A corpus of fewer is more likely not cut into documents than held out by too small a share."""


def build(
    data: Data,
    out: Path,
    *,
    cache: Path | None = None,
    protected: Mapping[str, Sequence[str]] | None = None,
    unprotected: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Step]:
    """Build the corpus in `out`; a finished one of the same description and sources is left as it is.

    Args:
        protected: name -> texts of evaluation sets, which training text must not repeat (`data.decontaminate`).
        unprotected: name -> why the texts of a set are not there; recorded.
        progress: is told in one line which source is being fetched or read.

    Raises:
        SourceError: a source cannot be had or read.
        DataError: nothing is left to train or to validate on, or the disk is full.
    """
    with full_disk_said(out):
        origin = Origin(data, progress)
        for count, options in enumerate(all_sources(data), start=1):
            found = origin.fetch(options, cache)
            yield Step(count, 0, notes={"source_bytes": float(found.size_bytes)})
        yield from _build(origin, out, dict(protected or {}), dict(unprotected or {}))


def _build(
    origin: Origin, out: Path, protected: dict[str, Sequence[str]], unprotected: dict[str, str]
) -> Iterator[Step]:
    data = origin.data
    count = len(all_sources(data))
    identity = origin.identity(protected)
    if _finished(out, identity):
        return
    clear(out, (DOCUMENTS, DROPPED, TOKENIZER, PROTECTED))
    (out / VALIDATION).mkdir(exist_ok=True)
    with DocumentWriter(out / DROPPED, DROPPED_COLUMNS) as dropped:
        tally, held, sets = Tally(), HeldOut(), {}
        for entry in data.validation:
            sets[entry.name] = _hold_out(entry, origin, held, dropped, tally, out)
            count += 1
            yield Step(count, 0, notes={"held_out_documents": float(sets[entry.name]["documents"])})
        unseen = _unseen(data, held, sets, protected)
        with DocumentWriter(out / DOCUMENTS) as kept:
            distinct = _kept(held.without_duplicates(_training(origin, tally)), dropped, tally)
            for place, item in enumerate(unseen.clean(distinct) if unseen else distinct, start=1):
                _settle(item, kept, dropped, tally)
                if place % STEP_DOCUMENTS == 0:
                    count += 1
                    yield Step(count, 0, notes=tally.notes())
    if not tally.out("documents"):
        raise DataError(f"no training document is left{_why_none(tally)}")
    yield Step(count + 1, 0, notes=tally.notes())
    words = _tokenizer(out, data.tokenizer, tally.out("bytes"))
    encoder = Encoder(words)
    for name, facts in sets.items():
        facts["tokens"] = sum(map(len, encoder.encode(d.text for d in documents(_set_path(out, name)))))
    cuts = None
    if unseen:
        cuts = {"sets": unseen.facts(), "missing": unprotected, "sha256": unseen.save(out / PROTECTED)}
    write_manifest(out, {**_facts(identity, origin, tally, sets, kept, out), "decontamination": cuts})
    yield Step(count + 2, 0, notes={**tally.notes(), "vocab": float(words.get_vocab_size())})


def _tokenizer(out: Path, config: Bpe | GivenTokenizer, total_bytes: int) -> Tokenizer:
    """Trained on the training text, or the given one; written to `out` as it will be used.

    Raises:
        DataError: the given one is not the file that was described.
    """
    if isinstance(config, Bpe):
        trained = tokenizer.train(_sample(out, config, total_bytes), config)
        trained.save(str(out / TOKENIZER))
        return trained
    try:
        content = Path(config.file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{config.file}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != config.sha256:
        raise DataError(f"{config.file}: another file than when the study was planned\nhint: run the suite again")
    (out / TOKENIZER).write_bytes(content)
    return tokenizer.load(out / TOKENIZER)


def _finished(out: Path, identity: str) -> bool:
    try:
        return read_manifest(out, "corpus")["identity"] == identity
    except DataError:
        return False


def _hold_out(
    entry: Any, origin: Origin, held: HeldOut, dropped: DocumentWriter, tally: Tally, out: Path
) -> dict[str, Any]:
    """Fill one validation set; its facts."""
    seen: Counter[str] = Counter()
    found = _held_out(entry, origin.documents(), seen) if isinstance(entry, Holdout) else origin.read(entry)
    first = len(held.documents)
    for item in held.add_distinct(found):
        _drop(item, dropped, tally)
    with DocumentWriter(_set_path(out, entry.name)) as file:
        for document in held.documents[first:]:
            file.add(document)
    taken = held.documents[first:]
    if isinstance(entry, Holdout) and (unknown := sorted(entry.domains.keys() - seen)):
        raise DataError(
            f"validation set {entry.name}: the corpus has no document of domain {', '.join(unknown)}\n"
            f"hint: its domains are {', '.join(sorted(seen))}"
        )
    if not taken:
        raise DataError(f"validation set {entry.name}: no document is left{_why_unheld(entry, seen.total())}")
    return {
        "documents": len(taken),
        "bytes": sum(len(document.text.encode()) for document in taken),
        "sha256": file.digest.hexdigest(),
    }


def _why_unheld(entry: Any, documents: int) -> str:
    """What became of a validation set without a document, and what helps."""
    if not isinstance(entry, Holdout):
        return "\nhint: another source: all of its text is held out by another set already"
    found = f": none of {documents} in the corpus falls into its share"
    if documents < FEW_DOCUMENTS:
        return (
            f"{found}\nhint: documents are held out whole, and a text file is one: cut it into many (a file or a line "
            "of JSONL each), or name a set of its own: {kind: source, name: held, source: FILE}"
        )
    return f"{found}\nhint: a larger `share`, or another source"


def _why_none(tally: Tally) -> str:
    """What became of the training text, and what helps."""
    if not tally.dropped:
        return "\nhint: a smaller `share` is held out of a small corpus"
    counted = ", ".join(f"{reason} {number}" for reason, number in tally.dropped.most_common())
    return f": of {tally.documents_in} all were dropped ({counted})\nhint: is the validation text the same text?"


def _held_out(entry: Holdout, documents: Iterable[Document], seen: Counter[str]) -> Iterator[Document]:
    """Documents whose hash falls into the share of their domain; counts those that there are, by domain."""
    for document in documents:
        seen[document.domain] += 1
        if is_held_out(document, entry.share_of(document.domain)):
            yield document


def _training(origin: Origin, tally: Tally) -> Iterator[Document]:
    """Documents that are not held out."""
    entry = next((entry for entry in origin.data.validation if isinstance(entry, Holdout)), None)
    for document in origin.documents():
        if entry is None or not is_held_out(document, entry.share_of(document.domain)):
            yield tally.read(document)


def _unseen(
    data: Data, held: HeldOut, sets: Mapping[str, Any], protected: Mapping[str, Sequence[str]]
) -> Protected | None:
    """What training text must not repeat: the validation sets, then the evaluation sets."""
    if data.decontaminate is None:
        return None
    texts: dict[str, Sequence[str]] = {}
    first = 0
    for name, facts in sets.items():
        taken = held.documents[first : first + facts["documents"]]
        texts[f"validation: {name}"] = [document.text for document in taken]
        first += len(taken)
    return Protected(data.decontaminate, texts | dict(protected))


def _kept(items: Iterable[Document | Dropped], dropped: DocumentWriter, tally: Tally) -> Iterator[Document]:
    for item in items:
        if isinstance(item, Dropped):
            _drop(item, dropped, tally)
        else:
            yield item


def _settle(item: Document | Dropped, kept: DocumentWriter, dropped: DocumentWriter, tally: Tally) -> None:
    if isinstance(item, Dropped):
        _drop(item, dropped, tally)
    else:
        kept.add(item)
        tally.keep(item)


def _drop(item: Dropped, dropped: DocumentWriter, tally: Tally) -> None:
    dropped.add(item)
    tally.drop(item)


def _sample(out: Path, config: Bpe, total_bytes: int) -> Iterator[str]:
    """Training texts up to about `config.sample` bytes, chosen by hash so that every part of the corpus is in it."""
    share = config.sample / max(total_bytes, 1)
    for document in documents(out / DOCUMENTS):
        if share >= 1 or int.from_bytes(fingerprint(document.text)[8:], "big") < share * 2**64:
            yield document.text


def _set_path(out: Path, name: str) -> Path:
    return out / VALIDATION / f"{name}.parquet"


def _facts(
    identity: str,
    origin: Origin,
    tally: Tally,
    sets: dict[str, Any],
    kept: DocumentWriter,
    out: Path,
) -> dict[str, Any]:
    trained = (out / TOKENIZER).read_bytes()
    return {
        "kind": "corpus",
        "identity": identity,
        **tally.facts(),
        "sources": origin.facts(),
        "validation": sets,
        "validation_order": list(sets),
        "documents_sha256": kept.digest.hexdigest(),
        "tokenizer_sha256": hashlib.sha256(trained).hexdigest(),
        "vocab": len(json.loads(trained)["model"]["vocab"]),
    }
