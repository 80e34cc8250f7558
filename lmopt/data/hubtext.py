"""The first part of a data set on the Hugging Face hub, streamed, kept as far as it came, and continued from there."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lmopt.data.cache import Payload, SourceError, partial_of

CHECKPOINT_BYTES = 4_000_000
"""Text after which it is written down how far the stream is."""
ROWS, STATE, FETCHED = "rows.jsonl", "state.json", "text.jsonl.gz"


@dataclass(frozen=True, slots=True)
class HubText:
    """What to take of a data set on the Hugging Face hub."""

    name: str
    """OWNER/NAME or OWNER/NAME:CONFIG."""
    revision: str | None
    field: str
    limit_bytes: int | None
    domain_field: str | None = None

    @property
    def key(self) -> str:
        """What of it is kept together: another part is another entry of the cache."""
        parts = [self.field, *([] if self.domain_field is None else [self.domain_field]), str(self.limit_bytes)]
        return f"{self.name}{f'@{self.revision}' if self.revision else ''}+{'+'.join(parts)}"


@dataclass(slots=True)
class _Progress:
    """How far a stream is: a point that it can be continued from."""

    revision: str
    rows: int
    taken_bytes: int
    """Of text."""
    file_bytes: int
    """Of the rows that are written."""
    sha256: str
    """Of the rows that are written."""
    state: Any
    """Where the stream stands, in the words of `datasets`; None where it cannot say."""


def fetch(wanted: HubText, work: Path) -> Payload:
    """The first `limit_bytes` of text of the training split, as jsonl.gz under `field` (and `domain_field`).

    Raises:
        SourceError: there is no such set, field or text, or the connection broke; what came is kept for the next time.
    """
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise SourceError(f"hf:{wanted.name}: {error}\nhint: pip install 'lmbench-suite[hf]'") from error
    repository, _, config = wanted.name.partition(":")
    with _in_a_line(wanted):
        about = huggingface_hub.HfApi().dataset_info(repository, revision=wanted.revision)
        stream = datasets.load_dataset(repository, config or None, revision=about.sha, split="train", streaming=True)
    partial = partial_of(work)
    partial.mkdir(exist_ok=True)
    _take(wanted, stream, _progress(partial, about.sha or ""), partial)
    target = work / FETCHED
    with (
        (partial / ROWS).open("rb") as rows,
        target.open("wb") as out,
        # No name and no time in it: the same rows are the same bytes, whenever they came and in how many parts.
        gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
    ):
        shutil.copyfileobj(rows, packed, 1 << 20)
    shutil.rmtree(partial)
    licence = about.card_data.get("license") if about.card_data else None
    return Payload(target, about.sha or "", str(licence) if licence else None)


def _progress(partial: Path, revision: str) -> _Progress:
    """What an earlier fetch left of the same revision, else the beginning."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = _Progress(**json.loads((partial / STATE).read_text()))
        if found.revision == revision and _digest(partial, found.file_bytes).hexdigest() == found.sha256:
            return found
    return _Progress(revision, 0, 0, 0, "", None)


def _digest(partial: Path, file_bytes: int) -> Any:
    """SHA-256 of the first bytes of the rows that are written."""
    digest = hashlib.sha256()
    if file_bytes:
        with (partial / ROWS).open("rb") as rows:
            while file_bytes > 0 and (chunk := rows.read(min(file_bytes, 1 << 20))):
                digest.update(chunk)
                file_bytes -= len(chunk)
    return digest


def _take(wanted: HubText, stream: Any, progress: _Progress, partial: Path) -> None:
    """Append rows behind those that are there, until there is enough text or no more."""
    with (partial / ROWS).open("r+b" if (partial / ROWS).exists() else "w+b") as out:
        out.truncate(progress.file_bytes)
        out.seek(progress.file_bytes)
        marked, digest = progress.taken_bytes, _digest(partial, progress.file_bytes)
        with _in_a_line(wanted, progress):
            if progress.rows and progress.state is not None:
                stream.load_state_dict(progress.state)
            elif progress.rows:
                stream = stream.skip(progress.rows)
            rows = iter(stream)
        while wanted.limit_bytes is None or progress.taken_bytes < wanted.limit_bytes:
            with _in_a_line(wanted, progress):
                row = next(rows, None)
            if row is None:
                break
            text, written = _row(row, wanted)
            digest.update(written)
            progress.file_bytes += out.write(written)
            progress.taken_bytes += len(text.encode("utf-8", "replace"))
            progress.rows += 1
            if progress.taken_bytes - marked >= CHECKPOINT_BYTES:
                marked, progress.sha256 = progress.taken_bytes, digest.hexdigest()
                _mark(progress, stream, out, partial)


def _mark(progress: _Progress, stream: Any, out: IO[bytes], partial: Path) -> None:
    """Write down how far the stream is, behind the rows that it says are there."""
    out.flush()
    os.fsync(out.fileno())
    progress.state = stream.state_dict() if hasattr(stream, "state_dict") else None
    part = partial / f"{STATE}.new"
    part.write_text(json.dumps(asdict(progress)))
    part.replace(partial / STATE)


def _row(row: Mapping[str, Any], wanted: HubText) -> tuple[str, bytes]:
    """(text of a row, the line that is kept of it)."""
    text = _field(row, wanted.field, wanted)
    if text is not None and not isinstance(text, str):
        raise SourceError(f"hf:{wanted.name}: the field {wanted.field!r} holds {type(text).__name__}, not text")
    kept: dict[str, Any] = {wanted.field: text or ""}
    if wanted.domain_field is not None:
        label = _field(row, wanted.domain_field, wanted, "domain_field")
        if label is not None and not isinstance(label, str | int | float):
            kind = type(label).__name__
            raise SourceError(f"hf:{wanted.name}: the field {wanted.domain_field!r} holds {kind}, which is no label")
        kept[wanted.domain_field] = label
    return text or "", (json.dumps(kept) + "\n").encode()


def _field(row: Mapping[str, Any], name: str, wanted: HubText, knob: str = "field") -> Any:
    if name not in row:
        raise SourceError(f"hf:{wanted.name}: no field {name!r}; allowed: {', '.join(row)}\nhint: set `{knob}:`")
    return row[name]


@contextlib.contextmanager
def _in_a_line(wanted: HubText, progress: _Progress | None = None) -> Iterator[None]:
    """Whatever the hub's libraries raise, in a line: they have no error in common, nor has what they fetch with."""
    try:
        yield
    except Exception as error:
        said = first_line(str(error)) or type(error).__name__
        hint = "is there a network, and is the name right?"
        if progress is not None and progress.rows:
            hint = "is there a network? The same command continues near where this stopped"
        raise SourceError(f"hf:{wanted.name}: cannot be fetched\n{said}\nhint: {hint}") from error


def first_line(text: str) -> str:
    """The first line of a message, up to 200 characters."""
    return text.strip().splitlines()[0][:200] if text.strip() else ""
