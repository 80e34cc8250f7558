"""The versioned record of one finished case, and the append-only file that holds them.

One line of JSON a case. A line carries the SHA-256 of itself without that field, so that an edited or
half-written line is noticed. A reading that could not be taken is `null` with a reason; never 0, -1, inf or NaN.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import lzma
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA = 1
RUN_AGAIN = "hint: remove the case's line from records.jsonl and run again"
"""What mends a case whose record or files were changed: a case with a finished record is not run again."""

Grade = Literal["counted", "counter", "integrated", "modelled", "timed"]
"""How a number came about: exact count, hardware energy counter, sampled power, estimate, stopwatch."""
EVIDENCE: frozenset[Grade] = frozenset({"counter", "integrated"})
"""Grades of energy that count; a modelled joule is time in disguise."""
Status = Literal["ok", "diverged", "failed", "not_applicable"]
"""`diverged` is a result; `failed` is tried again; `not_applicable`: the case would change nothing on this machine."""
CaseKind = Literal["prepare", "train", "finetune", "evaluate", "generate", "timing"]


class Frozen(BaseModel):
    """Frozen and strict about unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Reading(Frozen):
    """One measured value with its unit and grade, or the reason why there is none."""

    value: float | int | None
    unit: str
    grade: Grade | None = None
    reason: str | None = None
    scope: str | None = None
    """What the value covers (`gpu0`, `package0`, `dram0`, `host`); arms are compared on equal scopes only."""

    @model_validator(mode="after")
    def _missing_has_a_reason(self) -> Self:
        if self.value is None and not self.reason:
            raise ValueError("a reading without a value needs a reason")
        if self.value is not None and self.grade is None:
            raise ValueError("a reading with a value needs a grade")
        return self


def missing(unit: str, reason: str, scope: str | None = None) -> Reading:
    """A reading that could not be taken, and why."""
    return Reading(value=None, unit=unit, reason=reason, scope=scope)


def reading(value: float | None, unit: str, grade: Grade, scope: str | None = None) -> Reading:
    """A reading; a value that is absent or not finite becomes a missing one."""
    if value is None or not math.isfinite(value):
        return missing(unit, f"not a finite number ({value})", scope)
    return Reading(value=value, unit=unit, grade=grade, scope=scope)


class CaseKey(Frozen):
    """Which case a record is of."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    kind: CaseKind
    arm: str
    scale: str | None = None
    seed: int | None = None
    horizon: float | None = None


class Record(Frozen):
    """One finished case."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    status: Status
    attempt: int = Field(default=1, ge=1)
    segments: int = Field(default=1, ge=1)
    """Processes that it took: more than one after a resume, and then no evidence on time or energy."""
    commit: str | None = None
    env: str | None = None
    """Fingerprint of the machine (see environment.json)."""
    reason: str | None = None
    """Why it failed or diverged."""
    case: CaseKey
    metrics: dict[str, Reading] = Field(default_factory=dict[str, Reading])
    detail: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Descriptive data that no metric is: loss curve, timing blocks, the three counts, drop reasons, task facts."""
    sha256: str | None = None

    @property
    def is_trial(self) -> bool:
        """Whether it is a tuning trial or what trials start or learn from: a training that no arm is judged by."""
        return "trial" in self.detail

    def value(self, metric: str) -> float | None:
        """The metric's value, or None where it is missing."""
        found = self.metrics.get(metric)
        return None if found is None or found.value is None else float(found.value)


class RecordError(ValueError):
    """A records file that cannot be trusted: says the file, the line and what to do."""


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in fields.items() if k != "sha256"}).encode()).hexdigest()


def _is_intact(line: str, fields: Mapping[str, Any]) -> bool:
    """Whether the content is what was hashed: as it stands (every line of `to_line`), else put in order again."""
    claimed = fields.get("sha256")
    as_it_stands = line.replace(f',"sha256":"{claimed}"', "", 1)
    return hashlib.sha256(as_it_stands.encode()).hexdigest() == claimed or _digest(fields) == claimed


def to_line(record: Record) -> str:
    """The record as one line of JSON (no newline) with its hash."""
    fields = record.model_dump(mode="json", by_alias=True, exclude={"sha256"})
    return _canonical(fields | {"sha256": _digest(fields)})


def from_line(line: str, where: str) -> Record:
    """Parse and verify one line.

    Raises:
        RecordError: not JSON, another schema version, an edited line, or a value out of its type.
    """
    try:
        fields = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not a record ({error}); hint: remove the line and run again") from error
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: not a record (a JSON {type(fields).__name__}, expected an object)")
    if fields.get("schema") != SCHEMA:
        raise RecordError(
            f"{where}: record of schema version {fields.get('schema')!r}, this program reads version {SCHEMA}; "
            "hint: judge it with the version that wrote it"
        )
    try:
        is_intact = _is_intact(line, fields)
    except ValueError as error:  # 1e999 is JSON, and no number
        raise RecordError(f"{where}: not a record ({error}); hint: remove the line and run again") from error
    if not is_intact:
        raise RecordError(
            f"{where}: content does not match its sha256 (edited by hand or damaged); "
            "hint: remove the line and run again"
        )
    _refuse_other_than_numbers(fields, where)
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where}: {path}: {first['msg']}") from error


def _refuse_other_than_numbers(fields: Mapping[str, Any], where: str) -> None:
    """A value in quotes, or `true`, would be taken for a number."""
    readings = fields.get("metrics")
    for name, reading in readings.items() if isinstance(readings, dict) else ():
        value = reading.get("value") if isinstance(reading, dict) else None
        if isinstance(value, bool | str):
            raise RecordError(f"{where}: metrics.{name}.value is {value!r}, expected a number or null")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a record may hold")


def append(path: Path, record: Record) -> None:
    """Add one record and flush it to the disk; what a killed writer left of a half-written one is cut off first.

    Raises:
        OSError: it cannot be written, as on a full disk; names the file.
    """
    try:
        with path.open("ab+") as file:
            _close_last_line(file)
            file.write(to_line(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _close_last_line(file: BinaryIO) -> None:
    """Leave the file empty or ending in a newline."""
    if file.tell() == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    *finished, rest = file.read().split(b"\n")
    if _whole_record(rest):
        file.write(b"\n")
    else:
        file.truncate(sum(len(line) + 1 for line in finished))


def read(path: Path) -> list[Record]:
    """Every record of a file, in order.

    A last line without its newline is what a killed writer leaves: unless it is whole, it is left out. Anything else
    that does not parse or verify is an error. A published study may hold the file packed, as `records.jsonl.xz`.

    Raises:
        RecordError: the file is missing, unreadable, or holds a line that cannot be trusted.
    """
    content = unpacked(path)
    if content.startswith(codecs.BOM_UTF8):
        raise RecordError(f"{path}: begins with a byte order mark; hint: save it as UTF-8 without one")
    *finished, rest = content.split(b"\n")
    records = [
        from_line(_text(line, f"{path}:{n}"), f"{path}:{n}") for n, line in enumerate(finished, 1) if line.strip()
    ]
    torn = _whole_record(rest) if rest else None
    if torn is not None:
        records.append(torn)
    _refuse_contradictions(path, records)
    return records


def packed(path: Path) -> Path:
    """Where the same records lie packed (LZMA, as `xz` reads and writes it)."""
    return path.with_name(path.name + ".xz")


def unpacked(path: Path) -> bytes:
    """The bytes of a file of records, wherever they lie: there, or packed beside it.

    Raises:
        RecordError: neither can be read.
    """
    where = packed(path) if not path.exists() and packed(path).exists() else path
    if where.exists() and not where.is_file():  # reading a pipe would wait for whoever writes it
        raise RecordError(f"{where}: is no file; hint: put back the file that the run wrote")
    try:
        content = where.read_bytes()
        return lzma.decompress(content) if where != path else content
    except OSError as error:
        raise RecordError(f"{where}: cannot be read ({error.strerror})") from error
    except (lzma.LZMAError, EOFError) as error:
        raise RecordError(
            f"{where}: cannot be unpacked ({error}); hint: take the file from where it came from"
        ) from error


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: not UTF-8 at byte {error.start}; hint: remove the line and run again") from error


def _whole_record(line: bytes) -> Record | None:
    """The record in an unfinished last line, if all of it reached the disk."""
    try:
        return from_line(_text(line, "last line"), "last line")
    except RecordError:
        return None


def _refuse_contradictions(path: Path, records: Iterable[Record]) -> None:
    done: set[str] = set()
    for record in records:
        if record.status == "failed":
            continue
        if record.case.id in done:
            raise RecordError(f"{path}: case {record.case.id} has two finished records; hint: keep one of them")
        done.add(record.case.id)
