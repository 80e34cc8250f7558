"""What an unquoted word of YAML means: the core schema of YAML 1.2, with underscores between digits allowed."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_DIGITS = 40
"""Digits of a number."""

# YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#1032-tag-resolution).
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9](_?[0-9])*")
_BASED_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9](_?[0-9])*|[0-9](_?[0-9])*(\.([0-9](_?[0-9])*)?)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]|[\ud800-\udfff]")
"""Characters that no text of a suite may hold."""


class BadScalar(ValueError):
    """A word that cannot be a value. `stand_in` takes its place, so that reading can go on to the next mistake."""

    def __init__(self, message: str, hint: str | None, stand_in: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.stand_in = stand_in


def resolve(text: str, *, is_plain: bool) -> Any:
    """null, true, false, a number, or the text itself; a word in quotes (not plain) is always text.

    Raises:
        BadScalar: control characters, numbers that are not finite or absurdly long.
    """
    if not is_plain:
        bad = CONTROL.search(text)
        if bad is not None:
            raise BadScalar(f"text holds the control character U+{ord(bad[0]):04X}", "remove the escape", "")
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _NOT_FINITE.fullmatch(text):
        raise BadScalar(f"{text} is not a finite number", None, 1)
    return _number(text)


def _number(text: str) -> int | float | str:
    """A number, or the text itself where it is none."""
    is_int = _INT.fullmatch(text) is not None
    is_based = _BASED_INT.fullmatch(text) is not None
    if not is_int and not is_based and not _FLOAT.fullmatch(text):
        return text
    digits = text.replace("_", "")
    if len(digits) > MAX_DIGITS:
        raise BadScalar(f"a number of {len(digits)} characters; at most {MAX_DIGITS} are read", None, 1)
    if is_int:
        return int(digits)
    if is_based:
        return int(digits, 0)
    number = float(digits)
    if not math.isfinite(number):
        raise BadScalar(f"{text} is too large for a number", None, 1)
    return number
