"""Labels of a figure: where they go so that none overlap, and what is left of a long name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

LABEL_CHARACTERS = 13
"""Room beside a curve, in letters."""


def spread(places: Sequence[float], gap: float | Sequence[float], low: float, high: float) -> list[float]:
    """Positions at least `gap` apart between `low` and `high`, in the same order and near where they were.

    Pools neighbours that would overlap and centres each pool (isotonic regression, pool adjacent violators).

    Args:
        gap: the same between all neighbours, or one for each pair of them, from the lowest place on.
    """
    gaps = [gap] * (len(places) - 1) if isinstance(gap, int | float) else gap
    offsets = [0.0, *itertools.accumulate(gaps)]
    order = sorted(range(len(places)), key=lambda index: places[index])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        centre, size = places[index] - offsets[rank], 1
        while pools and pools[-1][0] > centre:
            other, count = pools.pop()
            centre, size = (other * count + centre * size) / (count + size), count + size
        pools.append((centre, size))
    free = [centre for centre, size in pools for _ in range(size)]
    last = high - offsets[-1]
    result = [0.0] * len(places)
    for rank, index in enumerate(order):
        result[index] = min(max(free[rank], low), max(last, low)) + offsets[rank]
    return result


LEFT_OUT = "without-"
"""How names of an ablation's arms begin that leave one factor out."""


def shorten(name: str, characters: int = LABEL_CHARACTERS) -> str:
    """The name, cut in the middle where it is wider than so many letters: both ends tell names apart.

    Beside a curve an ablation's `without-int8` is `w/o int8`, which is cut at its end.
    """
    is_left_out = characters <= LABEL_CHARACTERS and name.startswith(LEFT_OUT)
    if is_left_out:
        name = f"w/o {name.removeprefix(LEFT_OUT)}"
    short, kept = name, min(characters, len(name) + 1)
    while _room(short) > characters:
        kept -= 1
        head = kept if is_left_out else (kept + 1) // 2
        short = f"{name[:head]}\u2026{name[len(name) - (kept - head) :]}"
    return short


def _room(name: str) -> float:
    """Width in letters of the common width: `m` and `w` are half as wide again."""
    return len(name) + 0.5 * sum(letter in "mw" for letter in name)
