"""Reading a cost off a curve of separately annealed horizons: ln C against final loss, piece by piece.

Never fitted: one straight line through all horizons reads a true saving of 20% as 17%. Inside the two horizons that
bracket a loss the curve is a straight piece bent by the curvature that a third horizon shows (a parabola through
three points): the straight piece alone lies above a convex curve, by 0.3% of C between horizons 0.8 and 1.0, which is
half a standard error of a quiet study with 5 seeds. Beyond the ends the outermost piece is extended by at most
`MAX_EXTENSION` in C; farther out the cost is only known to lie beyond (censored). Trainings of nearly the same cost (a
claim point beside a horizon) are two readings of one place and become one point: a piece between them would be all
noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.stats.additive import Value, exactly

MAX_EXTENSION = 0.05
"""Share of C by which a curve may be read beyond its ends."""
SAME_PLACE = 0.03
"""Costs that differ by less than this share are averaged, in ln C and loss: a convex curve bends by nothing over it."""
BISECTIONS = 60
"""Halvings of a bracket: to the last bit of a double."""
MIN_SPREAD = 0.5
"""A third horizon nearer to the bracket than this share of its width tells noise, not curvature."""


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
    curve = _places(points)
    starts_above, ends_above = curve[0].loss > loss, curve[-1].loss > loss
    inside = _crossings(curve, loss)
    if starts_above and not ends_above:
        return inside[len(inside) // 2]
    if starts_above:
        # Reached on the way and lost again (noise, or a long training that diverged): at the first place or never.
        return Value(inside[0].low, math.inf, None) if inside else _beyond_longest(curve, loss)
    return Value(-math.inf, math.inf, None) if ends_above else _below_shortest(curve, loss)


def _places(points: Sequence[Point]) -> list[Point]:
    """Ordered by cost, trainings at the same place made one point."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.cost):
        if groups and point.cost <= groups[-1][0].cost * (1 + SAME_PLACE):
            groups[-1].append(point)
        else:
            groups.append([point])
    return [group[0] if len(group) == 1 else _mean(group) for group in groups]


def _mean(group: Sequence[Point]) -> Point:
    log_cost = math.fsum(math.log(point.cost) for point in group) / len(group)
    return Point(math.exp(log_cost), math.fsum(point.loss for point in group) / len(group))


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
            found.append(exactly(_Piece(curve, left, right).inside(loss)))
    return found


class _Piece:
    """ln C -> loss between two neighbouring horizons: a line, bent by the curvature a third one shows."""

    def __init__(self, curve: Sequence[Point], left: Point, right: Point) -> None:
        self.left, self.right = math.log(left.cost), math.log(right.cost)
        self._left_loss, self._right_loss = left.loss, right.loss
        self.slope = (right.loss - left.loss) / (self.right - self.left)
        third = self._third([point for point in curve if point not in (left, right) and math.isfinite(point.loss)])
        self.bend = 0.0 if third is None else self._bend(third)

    def _third(self, others: Sequence[Point]) -> Point | None:
        """The nearest other horizon that is not too near."""
        width = self.right - self.left
        far = [(self._distance(point), point) for point in others if self._distance(point) >= MIN_SPREAD * width]
        return min(far, key=lambda one: one[0])[1] if far else None

    def _distance(self, point: Point) -> float:
        at = math.log(point.cost)
        return max(self.left - at, at - self.right)

    def _bend(self, third: Point) -> float:
        """Newton's second divided difference."""
        at = math.log(third.cost)
        line = self._left_loss + self.slope * (at - self.left)
        return (third.loss - line) / ((at - self.left) * (at - self.right))

    def loss_at(self, log_cost: float) -> float:
        """The piece at ln C."""
        line = self._left_loss + self.slope * (log_cost - self.left)
        return line + self.bend * (log_cost - self.left) * (log_cost - self.right)

    def inside(self, loss: float) -> float:
        """ln C of a loss between those of the two ends: there is exactly one.

        An end's own loss is at that end to the last bit: halving would stop short of it, by the same bit for every
        seed, and an arm that ends just as its reference does would cost more without a doubt.
        """
        if loss == self._right_loss:
            return self.right
        return self.left if loss == self._left_loss else self.between(loss, self.left, self.right)

    def between(self, loss: float, start: float, stop: float) -> float:
        """ln C of a loss that the piece passes between two places where it lies on different sides of it."""
        above = self.loss_at(start) > loss
        for _ in range(BISECTIONS):
            middle = (start + stop) / 2
            if (self.loss_at(middle) > loss) == above:
                start = middle
            else:
                stop = middle
        return (start + stop) / 2


def _beyond_longest(curve: Sequence[Point], loss: float) -> Value:
    """The longest horizon does not reach the loss."""
    edge = math.log(curve[-1].cost)
    limit = edge + math.log1p(MAX_EXTENSION)
    piece = _outer(curve[-2:], curve)
    if piece is None:
        return Value(edge, math.inf, None)
    if piece.loss_at(limit) <= loss:
        return exactly(piece.between(loss, edge, limit))
    return Value(limit, math.inf, edge + (loss - curve[-1].loss) / piece.slope)


def _below_shortest(curve: Sequence[Point], loss: float) -> Value:
    """Already the shortest horizon has reached the loss."""
    edge = math.log(curve[0].cost)
    limit = edge - math.log1p(MAX_EXTENSION)
    piece = _outer(curve[:2], curve) if math.isfinite(loss) else None
    if piece is None:
        return Value(-math.inf, edge, None)
    if piece.loss_at(limit) > loss:
        return exactly(piece.between(loss, limit, edge))
    return Value(-math.inf, limit, edge + (loss - curve[0].loss) / piece.slope)


def _outer(ends: Sequence[Point], curve: Sequence[Point]) -> _Piece | None:
    """The piece at an end of the curve; None where it does not fall or a point is missing."""
    if len(ends) < 2 or math.isinf(ends[0].loss) or math.isinf(ends[1].loss) or ends[0].loss <= ends[1].loss:
        return None
    return _Piece(curve, ends[0], ends[1])
