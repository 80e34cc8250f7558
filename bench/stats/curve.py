"""Reading a cost off a curve of separately annealed horizons: ln C against final loss, piecewise linear.

Never fitted: one straight line through all horizons reads a true saving of 20% as 17%. Beyond the ends the outermost
piece is extended by at most `MAX_EXTENSION` in C; farther out the cost is only known to lie beyond (censored).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.stats.additive import Value, exactly

MAX_EXTENSION = 0.05
"""Share of C by which a curve may be read beyond its ends."""


@dataclass(frozen=True, slots=True)
class Point:
    """The end of one annealed training."""

    cost: float
    """In any unit, positive."""
    loss: float
    """Infinite for a training that diverged."""


def log_cost_at(points: Sequence[Point], loss: float) -> Value:
    """ln of the cost at which a curve reaches `loss`.

    Args:
        points: ends of separately annealed trainings, in any order; at least one.
        loss: what is to be reached; infinite asks for the cost of a training that diverged, which is none.

    Returns:
        A known value between the ends and up to 5% beyond them; else one that is only known to lie above the longest
        horizon's cost (the loss is never reached) or below the shortest one's (it is reached already there).
    """
    curve = sorted(points, key=lambda point: point.cost)
    starts_above, ends_above = curve[0].loss > loss, curve[-1].loss > loss
    inside = _crossings(curve, loss)
    if starts_above and not ends_above:
        return inside[len(inside) // 2]
    if starts_above:
        # Reached on the way and lost again (noise, or a long training that diverged): at the first place or never.
        return Value(inside[0].low, math.inf, None) if inside else _beyond_longest(curve, loss)
    return Value(-math.inf, math.inf, None) if ends_above else _below_shortest(curve, loss)


def _crossings(curve: Sequence[Point], loss: float) -> list[Value]:
    """ln C at each place where the curve passes `loss`, from left to right.

    Noise may make a curve rise; if it still ends below, it passes an odd number of times and the middle one favours
    neither side. On a piece with a diverged end the place is only known to lie between the ends.
    """
    found: list[Value] = []
    for left, right in itertools.pairwise(curve):
        if (left.loss > loss) == (right.loss > loss):
            continue
        if math.isinf(left.loss) or math.isinf(right.loss):
            found.append(Value(math.log(left.cost), math.log(right.cost), None))
        else:
            found.append(exactly(_on_line(left, right, loss)))
    return found


def _on_line(left: Point, right: Point, loss: float) -> float:
    share = (left.loss - loss) / (left.loss - right.loss)
    return math.log(left.cost) + share * math.log(right.cost / left.cost)


def _beyond_longest(curve: Sequence[Point], loss: float) -> Value:
    """The longest horizon does not reach the loss."""
    last = curve[-1]
    edge = math.log(last.cost)
    extended = _extended(curve[-2], last, loss) if len(curve) > 1 else None
    if extended is None or extended < edge:
        return Value(edge, math.inf, None)
    limit = edge + math.log1p(MAX_EXTENSION)
    return exactly(extended) if extended <= limit else Value(limit, math.inf, extended)


def _below_shortest(curve: Sequence[Point], loss: float) -> Value:
    """Already the shortest horizon has reached the loss."""
    first = curve[0]
    edge = math.log(first.cost)
    extended = _extended(first, curve[1], loss) if len(curve) > 1 else None
    if extended is None or extended > edge:
        return Value(-math.inf, edge, None)
    limit = edge - math.log1p(MAX_EXTENSION)
    return exactly(extended) if extended >= limit else Value(-math.inf, limit, extended)


def _extended(left: Point, right: Point, loss: float) -> float | None:
    """Where the line through two points has a loss; None where it does not fall or a point is missing."""
    if math.isinf(loss) or math.isinf(left.loss) or math.isinf(right.loss) or left.loss <= right.loss:
        return None
    return _on_line(left, right, loss)
