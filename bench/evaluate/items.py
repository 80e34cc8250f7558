"""Per-item results of an evaluation, as a Parquet file with a hash of its content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.record import RUN_AGAIN


@dataclass(frozen=True, slots=True)
class ItemRow:
    """How a model did on one item of one task."""

    task: str
    item: str
    passage: str | None
    """Items with the same passage are not independent."""
    score: float
    """1 if the correct choice is the best one, 1/m if it is one of m equally good ones, else 0."""
    score_lm_eval: float
    """lm-evaluation-harness's own value; it gives a tie to the first choice."""
    choice_bits_per_byte: float | None
    """Bits a byte of the correct choice given its context; None where the task has no choices."""


SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("passage", pa.string()),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("score_lm_eval", pa.float64(), nullable=False),
        pa.field("choice_bits_per_byte", pa.float32()),
    ]
)
ENCODINGS = {"item": "DELTA_BYTE_ARRAY", "choice_bits_per_byte": "BYTE_STREAM_SPLIT"}
"""Of the columns in which hardly a value comes twice: sorted names share their beginnings, floats their high bytes. Two
fifths off a table of 17,000 items."""


class BadItems(ValueError):
    """A file of items that cannot be trusted."""


def write(path: Path, rows: Iterable[ItemRow]) -> str:
    """Write the rows, sorted by task and item; returns the SHA-256 of the file.

    Raises:
        BadItems: an item occurs twice, or a value is not a finite number.
    """
    ordered = sorted(rows, key=lambda row: (row.task, row.item))
    _refuse_unusable(ordered)
    names = [field.name for field in fields(ItemRow)]
    table = pa.table({name: [getattr(row, name) for row in ordered] for name in names}, schema=SCHEMA)
    repeated: Any = [name for name in names if name not in ENCODINGS]  # its type stub knows only True and False
    pq.write_table(
        table, path, compression="zstd", compression_level=19, column_encoding=ENCODINGS, use_dictionary=repeated
    )
    return sha256(path)


def _refuse_unusable(rows: list[ItemRow]) -> None:
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and (before.task, before.item) == (row.task, row.item):
            raise BadItems(f"task {row.task}: item {row.item} occurs twice")
        numbers = (row.score, row.score_lm_eval, row.choice_bits_per_byte)
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise BadItems(f"task {row.task}, item {row.item}: not a finite number in {numbers}")


def read(path: Path, *, expect_sha256: str | None = None) -> list[ItemRow]:
    """The rows of a file.

    Raises:
        BadItems: missing, damaged, or not the file whose hash is given.
    """
    try:
        if expect_sha256 is not None and sha256(path) != expect_sha256:
            raise BadItems(f"{path}: content does not match its recorded sha256\n{RUN_AGAIN}")
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise BadItems(f"{path}: cannot be read ({error})\n{RUN_AGAIN}") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return [ItemRow(**row) for row in rows]


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
