"""Numbers as people write them: `2B` tokens, `30min`, `24GiB`, `3e-4`.

Pure functions from text to plain numbers, and the annotated types that the
typed descriptions are built from. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

COUNT_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
DURATION_SUFFIXES_S = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}
BYTE_SUFFIXES = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
MAX_COUNT = 10**15
"""Largest count accepted anywhere: a quadrillion tokens is beyond any training run to date."""

_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z]*)")


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {what}; write it like {example}")
    number = float(match[1].replace("_", ""))
    if math.isinf(number):  # 1e999, or four hundred digits
        raise ValueError(f"{text[:20]!r} is too large a number")
    return number, match[2]


def parse_count(value: Any) -> Any:
    """A whole number: `1_000_000`, `2B`, `1.5M`, `3e6`. Other types pass through for pydantic to judge."""
    if isinstance(value, str):
        number, suffix = _split(value, "a count", "2M, 1.5B or 1_000_000")
        if suffix not in COUNT_SUFFIXES:
            raise ValueError(f"unknown suffix {suffix!r} in {value!r}; allowed: k, M, B (or G), T")
        value = number * COUNT_SUFFIXES[suffix]
    if isinstance(value, float):
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"{value!r} is not a whole number")
        return int(value)
    return value


def parse_duration_s(value: Any) -> Any:
    """Seconds: `90`, `30s`, `30min`, `2h`, `1d`."""
    if isinstance(value, str):
        number, suffix = _split(value, "a duration", "90s, 30min or 2h")
        if suffix and suffix not in DURATION_SUFFIXES_S:
            raise ValueError(f"unknown unit {suffix!r} in {value!r}; allowed: s, min, h, d")
        return number * DURATION_SUFFIXES_S.get(suffix, 1)
    return value


def parse_bytes(value: Any) -> Any:
    """Bytes: `500MB` (decimal), `8GiB` (binary), or a plain number of bytes."""
    if isinstance(value, str):
        number, suffix = _split(value, "a size", "500MB or 8GiB")
        if suffix and suffix not in BYTE_SUFFIXES:
            raise ValueError(f"unknown unit {suffix!r} in {value!r}; allowed: {', '.join(BYTE_SUFFIXES)}")
        return int(number * BYTE_SUFFIXES.get(suffix, 1))
    return value


def _either(kind: str, pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind, "minimum": 0}, {"type": "string", "pattern": pattern}]})


Whole = Annotated[
    int,
    BeforeValidator(parse_count),
    _either("number", r"^[0-9][0-9_]*(\.[0-9]+)?(e[0-9]+)?\s*[kMBGT]?$"),
]
"""A whole number to which a field adds its own bounds, so that a value beyond them is told one bound and not two;
`2B` and `1_000_000` are understood."""

Count = Annotated[Whole, Field(ge=0, le=MAX_COUNT)]
"""A non-negative whole number."""

Seconds = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    Field(gt=0, le=366 * 86400, allow_inf_nan=False),
    _either("number", r"^[0-9][0-9_]*(\.[0-9]+)?\s*(s|sec|min|h|d)?$"),
]
"""A duration in seconds; `30min` and `2h` are understood."""

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(gt=0, le=2**60),
    _either("number", r"^[0-9][0-9_]*(\.[0-9]+)?\s*([kMGT]?B|[KMGT]iB)?$"),
]
"""A size in bytes; `500MB` and `8GiB` are understood."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A fraction from 0 to 1."""


def possible(first: int, last: int) -> str:
    """`1 to 3 are possible`, `1 is possible`, `none is possible`: which whole numbers a message may offer."""
    if last < first:
        return "none is possible"
    return f"{first} is possible" if first == last else f"{first} to {last} are possible"


def human_count(number: float) -> str:
    """1_234_567 -> '1.23M' (three significant digits)."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def human_bytes(number: float) -> str:
    """3_500_000_000 -> '3.26 GiB'."""
    for suffix in ("TiB", "GiB", "MiB", "KiB"):
        if abs(number) >= BYTE_SUFFIXES[suffix]:
            size = number / BYTE_SUFFIXES[suffix]
            return f"{size:.3g} {suffix}" if abs(size) < 999.5 else f"{size:.0f} {suffix}"
    return f"{number:.0f} B"


def written_bytes(number: int) -> str:
    """500_000_000 -> '500MB', 67_108_864 -> '64MiB': as a suite writes it, to the byte."""
    size, suffix = max((size, suffix) for suffix, size in BYTE_SUFFIXES.items() if number % size == 0)
    return f"{number // size}{suffix}"


def is_bytes(annotation: Any) -> bool:
    """Whether a field's type is a size in bytes, or one among others."""
    validator = getattr(annotation, "func", None)
    return validator is parse_bytes or any(map(is_bytes, (*get_args(annotation), *getattr(annotation, "metadata", ()))))


def human_seconds(number: float) -> str:
    """93.2 -> '1 min 33 s'."""
    if number < 60:
        return f"{number:.3g} s"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next(i for i, (size, _) in enumerate(parts) if size)
    return " ".join(f"{size} {unit}" for size, unit in parts[first : first + 2] if size)
