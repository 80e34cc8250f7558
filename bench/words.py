"""Numbers inside the sentences of a verdict: `27.1%`, `27.1% [22.0, 31.3]`, `3 seeds`. Plain text without markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Outcome = Literal["SUPPORTED", "REFUTED", "INCONCLUSIVE", "NOT MEASURED", "SAVES", "COSTS", "UNCLEAR", "INFERIOR"]
MINUS = "\u2212"
NO_ACCURACY = "accuracy was not measured: "
"""How a reason begins within a verdict's sentence; where `not measured` stands beside it, the rest says enough."""
MILLION = 1e6
NEAR_ALL, TENFOLD = 0.9995, -9.0
"""Savings that say nothing: at most what is written as 100.0%, and at least a cost of ten times as much."""


def percent(share: float, decimals: int = 1) -> str:
    """0.271 -> `27.1%`, with a true minus."""
    return f"{signless(100 * share, decimals)}%"


def signless(value: float, decimals: int) -> str:
    """A number with a true minus where it is negative after rounding; from a million on `1.2e39`."""
    size = abs(value)
    text = f"{size:.{decimals}f}" if size < MILLION or math.isinf(size) else _by_its_power(size)
    return (MINUS if value < 0 and float(text) else "") + text


def _by_its_power(size: float) -> str:
    digits, _, power = f"{size:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def signed(value: float, decimals: int) -> str:
    """A number with its sign: `+3.3`, and a true minus."""
    text = signless(value, decimals)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(bounds: Sequence[float | None], scale: float = 100.0, decimals: int = 1) -> str:
    """`[22.0, 31.3]`; an open end is written as infinity."""
    low, high = bounds
    left = f"{MINUS}\u221e" if low is None else signless(scale * low, decimals)
    right = "\u221e" if high is None else signless(scale * high, decimals)
    return f"[{left}, {right}]"


def saved(saving: float, bounds: Sequence[float | None] = (None, None)) -> str:
    """`saves 27.1% [22.0, 31.3]`, `costs 12.1% more [4.0, 20.2]`; no interval where both ends are open."""
    low, high = bounds
    text = f"saves {percent(saving)}" if saving >= 0 else f"costs {percent(-saving)} more"
    if low is None and high is None:
        return text
    ends = (low, high) if saving >= 0 else (None if high is None else -high, None if low is None else -low)
    return f"{text} {interval(ends)}"


def points(difference: float) -> str:
    """-0.0042 -> `\u22120.42 points`."""
    return f"{signless(100 * difference, 2)} points"


def margin_words(less_than: float, kind: Literal["absolute", "relative"]) -> str:
    """0.01 -> `1 point`, or `1% of the reference`; 0.005 -> `0.5 points`."""
    amount = f"{100 * less_than:g}"
    if kind == "relative":
        return f"{amount}% of the reference"
    return f"{amount} {'point' if amount == '1' else 'points'}"


def several(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(things: Sequence[str], most: int = 3) -> str:
    """The first few things, and how many more."""
    rest = len(things) - most
    return "; ".join(things[:most]) + (f"; and {rest} more" if rest > 0 else "")


def finite(value: float | None) -> float | None:
    """None for what JSON has no number for: an open bound, a value that is not known."""
    return float(value) if value is not None and math.isfinite(value) else None
