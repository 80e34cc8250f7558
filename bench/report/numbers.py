"""Numbers as a reader wants them: significant digits, units, thin spaces, a true minus sign.

Pure text. A missing value has no place here: the caller says why there is none.
"""

from __future__ import annotations

import math

THIN = "\u202f"
"""Narrow no-break space: between a number and its unit, and between groups of three digits."""
MINUS = "\u2212"
TIMES = "\u00d7"
DASH = "\u2013"

_SI = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def decimals_for(value: float, digits: int) -> int:
    """Decimals that show `value` to `digits` significant digits (none for numbers too large to need them)."""
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return max(0, digits - 1 - exponent)


def fixed(value: float, decimals: int, *, sign: bool = False) -> str:
    """`value` with this many decimals, digits grouped, a true minus; a rounded zero carries no sign."""
    text = f"{abs(value):,.{decimals}f}".replace(",", THIN)
    if not any(digit in text for digit in "123456789"):
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def significant(value: float, digits: int = 3) -> str:
    """`value` to this many significant digits, in plain decimals with grouped digits: 0.0123, 4.56, 12 300."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.replace('-', MINUS)}{TIMES}10{_superscript(int(exponent))}"
    return fixed(value, decimals_for(value, digits))


def _superscript(number: int) -> str:
    return str(number).translate(
        str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    )


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """With an SI prefix: 1.24 PFLOP, 4.19 M, 12.3 kJ, 3.1 mJ."""
    size = abs(value)
    for scale, prefix in _SI:
        if size >= scale * (1 - 0.5 * 10**-digits):
            return f"{significant(value / scale, digits)}{THIN}{prefix}{unit}"
    if 0 < size < 0.1 and unit:
        for scale, prefix in ((1e-3, "m"), (1e-6, "\u00b5"), (1e-9, "n")):
            if size >= scale:
                return f"{significant(value / scale, digits)}{THIN}{prefix}{unit}"
    return significant(value, digits) + (THIN + unit if unit else "")


def size(value: float) -> str:
    """Bytes with a binary prefix: 312 MiB."""
    for scale, unit in _BINARY:
        if abs(value) >= scale:
            return f"{significant(value / scale)}{THIN}{unit}"
    return f"{fixed(value, 0)}{THIN}B"


def duration(value: float) -> str:
    """Seconds as a person says them: 8.31 ms, 12.3 s, 3 min 20 s, 2 h 5 min."""
    if abs(value) < 60:
        return si(value, "s")
    seconds = round(abs(value))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (seconds, "s")]
    text = " ".join(f"{number}{THIN}{unit}" for number, unit in parts if number)
    return (MINUS if value < 0 else "") + text


def percent(share: float, *, sign: bool = False, decimals: int | None = None) -> str:
    """A share as a percentage: 0.234 -> 23.4%."""
    value = 100 * share
    return fixed(value, decimals_for_percent(value) if decimals is None else decimals, sign=sign) + "%"


def decimals_for_percent(value: float) -> int:
    """One decimal for everyday percentages, more only where the value would vanish."""
    return 1 if abs(value) >= 0.1 or value == 0 else min(4, decimals_for(value, 1))


def points(share: float, *, sign: bool = True) -> str:
    """A difference of shares in percentage points: -0.004 -> −0.40 pp."""
    return fixed(100 * share, 2, sign=sign) + THIN + "pp"


def interval(low: float | None, high: float | None, decimals: int = 1, scale: float = 100.0) -> str:
    """Two bounds in brackets, in the unit of the number they stand beside; an open side reads as infinite."""
    left = MINUS + "\u221e" if low is None else _bound(scale * low, decimals)
    right = "\u221e" if high is None else _bound(scale * high, decimals)
    return f"[{left}, {right}]"


def _bound(value: float, decimals: int) -> str:
    """An end of an interval: with its decimals, or by its power of ten where it is beyond a million."""
    return fixed(value, decimals) if abs(value) < 1e6 else significant(value, 2)


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A reading in its unit, in the form that suits the unit."""
    match unit:
        case "s":
            return duration(value)
        case "B" | "bytes" | "byte":
            return size(value)
        case "FLOP" | "J" | "W" | "FLOP/token" | "J/token" | "tokens/s" | "token/s" | "tokens" | "token":
            return si(value, unit, digits)
        case "1" | "":
            return si(value, "", digits) if abs(value) >= 1e4 else significant(value, digits)
        case _:
            return f"{si(value, '', digits) if abs(value) >= 1e4 else significant(value, digits)}{THIN}{unit}"


def plain(text: str) -> str:
    """The same text for a terminal: ordinary spaces, an ASCII minus."""
    return text.replace(THIN, " ").replace("\u00a0", " ").replace("\u2009", " ").replace(MINUS, "-")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
