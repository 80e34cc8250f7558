"""Readers of file formats: a stream of bytes in, passages of text out."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmopt.data.cache import SourceError
from lmopt.data.html import html_text

ENDINGS = {
    ".txt": "txt", ".md": "txt", ".rst": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".html": "html", ".htm": "html",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")
HINTS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it, and name the folder"),
    ".json": "one object a line is jsonl: jq -c '.[]' FILE > FILE.jsonl; a file that has that already: `reader: jsonl`",
    **dict.fromkeys((".bz2", ".xz"), "unpack it, or compress it with gzip or zstd"),
}
"""Ending -> what helps."""
MOST_NAMES = 200
"""Characters of columns' names in a message: a file without a header has a document there."""
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
    ending = ending_of(name)
    try:
        return ENDINGS[ending]
    except KeyError:
        hint = HINTS.get(ending, "name the format with `reader:`")
        allowed = f"allowed: {', '.join(ENDINGS)}, compressed with .gz or .zst too"
        raise SourceError(f"{name}: no reader for the ending {ending!r}; {allowed}\nhint: {hint}") from None


def ending_of(name: str) -> str:
    """The ending that tells a file's format, in small letters and without that of a compression."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


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
        hint = "is it yours to read?" if isinstance(error, PermissionError) else "is the file complete?"
        raise SourceError(f"{path}: cannot be read ({error})\nhint: {hint}") from error


def _decompressed(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
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
        got = f"got {_listed(row)}\nhint: set `domain_field:`; null stands for a row without a label"
        raise SourceError(f"{where}: no key {field!r} for the domain; {got}")
    if not isinstance(row[field], str | int | float | None):
        kind = type(row[field]).__name__
        raise SourceError(f"{where}: the key {field!r} holds {kind}, which is no label\nhint: set `domain_field:`")
    return row[field]


def _row(field: str, line: str, where: str) -> dict[str, Any]:
    """A line's object, with text under the field; null is no text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "jsonl has one object a line, each whole: jq -c . FILE > FILE.jsonl writes it so"
        raise SourceError(f"{where}: not JSON ({error})\nhint: {hint}") from error
    if not isinstance(row, dict):
        hint = "jsonl has one object a line: jq -c '.[]' FILE > FILE.jsonl takes a list apart"
        raise SourceError(f"{where}: a {type(row).__name__}, no object with a key {field!r}\nhint: {hint}")
    if field not in row:
        raise SourceError(f"{where}: no text under {field!r}; got {_listed(row)}\nhint: set `field:`")
    if row[field] is not None and not isinstance(row[field], str):
        hint = "set `field:` to a key of the line itself that holds text; what is nested is not looked into"
        raise SourceError(f"{where}: no text under {field!r}, but {type(row[field]).__name__}\nhint: {hint}")
    return {**row, field: row[field] or ""}


def _listed(names: Iterable[str]) -> str:
    """Names of columns or keys for a message; quoted where spaces would be overlooked."""
    text = ", ".join(name if name == name.strip() else repr(name) for name in names)
    return text if len(text) <= MOST_NAMES else f"{text[:MOST_NAMES]}..."


def read_csv(stream: BinaryIO, name: str, field: str, domain_field: str | None = None) -> Iterator[Passage]:
    """One document a row; a header line names the columns. `.tsv` is separated by tabs; null bytes are left out."""
    csv.field_size_limit(LONGEST_CSV_FIELD)  # the default of 128 KiB refuses long documents
    separator = "\t" if ".tsv" in Path(name.lower()).suffixes else ","
    with _lines(stream, newline="") as lines:
        # strict: else an unclosed quote swallows rows, and one that is not doubled ends a text at the next comma
        rows = csv.reader((line.replace("\0", "") for line in lines), delimiter=separator, strict=True)
        columns: list[str] | None = None
        number = 0
        try:
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    columns = row
                    _check_columns(name, columns, field, domain_field)
                    places = [None if knob is None else columns.index(knob) for knob in (field, domain_field)]
                    continue
                number += 1
                text, label = (_cell(row, place, columns, f"{name}:{number}") for place in places)
                yield Passage(f"{name}:{number}", text or "", label=label)
        except csv.Error as error:
            hint = "hint: a field with a quote in it stands in quotes, and has that quote doubled"
            raise SourceError(
                f"{name}: row {number + 1}, which ends in line {rows.line_num}: not CSV ({error})\n{hint}"
            ) from error


def _cell(row: list[str], place: int | None, columns: list[str], where: str) -> str | None:
    """What a row has in a column; a row may end early, behind the columns that are asked for."""
    if len(row) > len(columns) or (place is not None and place >= len(row)):
        hint = "hint: a field with a comma or a line's end in it has to stand in quotes"
        raise SourceError(f"{where}: {len(row)} fields in the row, {len(columns)} in the header\n{hint}")
    return None if place is None else row[place]


def _check_columns(name: str, columns: Sequence[str], field: str, domain_field: str | None) -> None:
    for knob, column in (("field", field), ("domain_field", domain_field)):
        if column is not None and column not in columns:
            hint = f"set `{knob}:`; names are in the first row"
            if len(columns) == 1 and ";" in columns[0]:
                hint = "fields are separated by commas (.csv) or tabs (.tsv), not by semicolons: write it so"
            raise SourceError(f"{name}: no column {column!r}; got {_listed(columns)}\nhint: {hint}")
        if column is not None and columns.count(column) > 1:
            raise SourceError(f"{name}: {columns.count(column)} columns are named {column!r}\nhint: rename all but one")


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
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise SourceError(f"{name}: not Parquet ({error})\nhint: is the file complete?") from error


def _rows(batch: Any, columns: list[str]) -> Iterator[tuple[Any, Any]]:
    """(text, label) of each row."""
    found = [_values(batch.column(column)) for column in columns]
    return zip(found[0], found[1] if len(found) > 1 else itertools.repeat(None), strict=False)


def _values(column: Any) -> list[Any]:
    """A column's values; text that is not UTF-8, which Parquet does not check, is read as other text is."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow

        return [None if value is None else text_of(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


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
