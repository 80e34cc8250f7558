"""Readers of file formats: a stream of bytes in, passages of text out."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmopt.data.cache import SourceError
from lmopt.data.html import html_text

ENDINGS = {
    ".txt": "txt", ".md": "txt", ".rst": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".html": "html", ".htm": "html",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")
LONGEST_CSV_FIELD = 2**31 - 1


class Passage(NamedTuple):
    """A text as its reader found it."""

    where: str
    """Place inside the source: file, line, row."""
    text: str
    domain: str | None = None
    """What the reader knows of its domain."""
    label: Any = None
    """What stands under the field that holds its domain, where one is named."""


Reader = Callable[[BinaryIO, str, str, str | None], Iterator[Passage]]
"""(stream, name of the file, fields that hold the text and, where there is one, the domain) -> passages."""
WITHOUT_FIELDS = ("txt", "html")
"""Formats of one document a file."""


def format_of(name: str) -> str:
    """The reader's name for a file, by its ending.

    Raises:
        SourceError: no reader goes by that ending.
    """
    path = Path(name)
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    try:
        return ENDINGS[plain.suffix.lower()]
    except KeyError:
        allowed = ", ".join(ENDINGS)
        raise SourceError(
            f"{name}: no reader for the ending {plain.suffix!r}; allowed: {allowed}, compressed with .gz or .zst too\n"
            "hint: name the format with `reader:`"
        ) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its ending.

    Raises:
        SourceError: while reading, when the file is absent, damaged or cut short.
    """
    try:
        with _decompressed(path) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read ({error})\nhint: is the file complete?") from error


def _decompressed(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow  # reads zstandard, and unlike the zstandard package refuses a frame that is cut short

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def text_of(data: bytes) -> str:
    """UTF-8 with a byte-order mark removed; what is not UTF-8 becomes U+FFFD."""
    return data.decode("utf-8-sig", "replace")


def _lines(stream: BinaryIO, newline: str = "\n") -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)


def read_txt(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:  # noqa: ARG001 - all readers are called alike
    """One document a file; a blank line is part of it."""
    yield Passage(name, text_of(stream.read()))


def read_jsonl(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:
    """One document a line."""
    with _lines(stream) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{name}:{number}"
                row = _row(field, line, where)
                yield Passage(where, row[field], label=_label(domain_field, row, where))


def _label(field: str | None, row: dict[str, Any], where: str) -> Any:
    """What a row has under the field of its domain."""
    if field is None:
        return None
    if field not in row:
        got = f"got {', '.join(row)}\nhint: set `domain_field:`; null stands for a row without a label"
        raise SourceError(f"{where}: no key {field!r} for the domain; {got}")
    if not isinstance(row[field], str | int | float | None):
        kind = type(row[field]).__name__
        raise SourceError(f"{where}: the key {field!r} holds {kind}, which is no label\nhint: set `domain_field:`")
    return row[field]


def _row(field: str, line: str, where: str) -> dict[str, Any]:
    """A line's object, with text under the field."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise SourceError(f"{where}: no text under {field!r}; got {keys}\nhint: set `field:`")
    return row


def read_csv(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:
    """One document a row; a header line names the columns. `.tsv` is separated by tabs; null bytes are left out."""
    csv.field_size_limit(LONGEST_CSV_FIELD)  # the default of 128 KiB refuses long documents
    separator = "\t" if ".tsv" in Path(name).suffixes else ","
    with _lines(stream, newline="") as lines:
        rows = csv.DictReader((line.replace("\0", "") for line in lines), delimiter=separator)
        columns = rows.fieldnames or ()
        _check_columns(name, columns, field, domain_field)
        for number, row in enumerate(rows, start=1):
            yield Passage(f"{name}:{number}", row[field] or "", label=row[domain_field] if domain_field else None)


def _check_columns(name: str, columns: Sequence[str], field: str, domain_field: str | None) -> None:
    for knob, column in (("field", field), ("domain_field", domain_field)):
        if column is not None and column not in columns:
            raise SourceError(f"{name}: no column {column!r}; got {', '.join(columns)}\nhint: set `{knob}:`")


def read_parquet(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:
    """One document a row."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            _check_columns(name, file.schema_arrow.names, field, domain_field)
            if not _is_text(file.schema_arrow.field(field).type):
                kind = file.schema_arrow.field(field).type
                raise SourceError(f"{name}: the column {field!r} holds {kind}, not text\nhint: set `field:`")
            if domain_field is not None and not _is_label(file.schema_arrow.field(domain_field).type):
                kind = file.schema_arrow.field(domain_field).type
                raise SourceError(
                    f"{name}: the column {domain_field!r} holds {kind}, which is no label\nhint: set `domain_field:`"
                )
            wanted = [field] if domain_field is None else [field, domain_field]
            rows = (row for batch in file.iter_batches(columns=wanted) for row in _rows(batch, wanted))
            for number, (text, label) in enumerate(rows, start=1):
                yield Passage(f"{name}:{number}", text or "", label=label)
    except pyarrow.ArrowInvalid as error:
        raise SourceError(f"{name}: not Parquet ({error})\nhint: is the file complete?") from error


def _rows(batch: Any, columns: list[str]) -> Iterator[tuple[Any, Any]]:
    """(text, label) of each row."""
    found = [batch.column(column).to_pylist() for column in columns]
    return zip(found[0], found[1] if len(found) > 1 else itertools.repeat(None), strict=False)


def _is_label(kind: Any) -> bool:
    """Whether an Arrow type is what a label may be: text or numbers."""
    from pyarrow import types

    inside = kind.value_type if types.is_dictionary(kind) else kind
    return _is_text(kind) or any(is_it(inside) for is_it in (types.is_integer, types.is_floating, types.is_boolean))


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is strings, in a dictionary too, or nothing but nulls."""
    from pyarrow import types

    inside = kind.value_type if types.is_dictionary(kind) else kind
    return any(is_it(inside) for is_it in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def read_html(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:  # noqa: ARG001 - all readers are called alike
    """One document a page: its paragraphs of prose."""
    yield Passage(name, html_text(text_of(stream.read())))


READERS: dict[str, Reader] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "html": read_html,
}
"""Format -> reader."""
