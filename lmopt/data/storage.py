"""Documents on disk: one Parquet file, written whole or not at all, read back in order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmopt.data.documents import Document, Dropped

MANIFEST = "manifest.json"
SCHEMA = 1
BATCH_ROWS = 2048
BATCH_CHARACTERS = 16_000_000
"""A batch of rows is written at this many characters, even if it has fewer rows."""
COLUMNS = ("id", "text", "domain", "source", "provenance")
DROPPED_COLUMNS = (*COLUMNS, "reason", "kept", "detail")


class DataError(Exception):
    """A data folder is not what it should be: where, what was found, and a hint."""


class DocumentWriter:
    """Appends documents or removals to a Parquet file, which gets its name when it is complete."""

    def __init__(self, path: Path, columns: tuple[str, ...] = COLUMNS) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        """Over the documents' ids and texts: the content, whatever the version that wrote the file."""
        self._columns = columns
        self._schema = pa.schema([(name, pa.string()) for name in columns])
        self._part = path.with_name(path.name + ".part")
        self._writer = pq.ParquetWriter(self._part, self._schema, compression="zstd")
        self._rows: list[tuple[str | None, ...]] = []
        self._characters = 0

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def add(self, item: Document | Dropped) -> None:
        """One row."""
        document = item.document if isinstance(item, Dropped) else item
        row = (document.id, document.text, document.domain, document.source, document.provenance)
        if isinstance(item, Dropped):
            row = (*row, item.reason, item.kept, item.detail)
        self.digest.update(f"{document.id}\0{document.text}\0".encode())
        self._rows.append(row)
        self._characters += len(document.text)
        if len(self._rows) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
            self._rows.clear()
            self._characters = 0


def documents(path: Path) -> Iterator[Document]:
    """The documents of a file, in order.

    Raises:
        DataError: it is absent or damaged.
    """
    for row in rows(path):
        yield Document(*(row[name] for name in COLUMNS))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a document file, as dictionaries."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one at a time: a batch must not gather the long texts of several
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                    yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error})\nhint: build it again") from error


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> str:
    """Write the manifest, last of all: a folder without one is not finished. Returns its SHA-256."""
    text = json.dumps({"schema": SCHEMA, **facts}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    part = folder / (MANIFEST + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The facts of a finished folder.

    Raises:
        DataError: it is not finished, unreadable, or of another kind.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise DataError(f"{folder}: a file, not the folder of a {kind}\nhint: name the folder that was built") from None
    except FileNotFoundError:
        built = ", ".join(sorted(str(found.parent) for found in folder.glob(f"*/{MANIFEST}")))
        hint = f"what was built lies in {built}" if built else "build it again" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: no {MANIFEST}, so this is not a finished {kind}\nhint: {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: unreadable ({error})\nhint: build it again") from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA or facts.get("kind") != kind:
        raise DataError(f"{path}: not the manifest of a {kind} (schema {SCHEMA})\nhint: build it again")
    return facts


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """A file that is removed again when what fills it fails."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def clear(folder: Path, names: tuple[str, ...]) -> None:
    """Make the folder, without its manifest and without what an interrupted build left of `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, *names):
        for path in (folder / name, folder / f"{name}.part"):
            path.unlink(missing_ok=True)
