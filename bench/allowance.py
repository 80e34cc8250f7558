"""How much a whole study may spend, as people write it: `30min`, `5M tokens`, `1e15 FLOP`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lmopt.quantities import human_count, human_seconds, parse_count, parse_duration_s


class BudgetError(ValueError):
    """A budget that cannot be read, or that no part of the study fits."""


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper bound on a whole study."""

    amount: float
    kind: Literal["time_s", "tokens", "flops"]

    def words(self) -> str:
        """`30m 0s`, `5M tokens` or `1e+15 FLOP`."""
        if self.kind == "time_s":
            return human_seconds(self.amount)
        return f"{human_count(self.amount)} tokens" if self.kind == "tokens" else f"{self.amount:.3g} FLOP"


def parse_budget(text: str) -> Budget:
    """Read an amount with its unit.

    Raises:
        BudgetError: not a positive time, number of tokens or number of FLOPs.
    """
    wrong = BudgetError(f"budget {text!r} is not understood; hint: write 30min, 2h, 5M tokens or 1e15 FLOP")
    match = re.fullmatch(r"\s*(\S+?(?:\s+[A-Za-z]+)??)\s*(tokens?|flops?)?\s*", text, re.IGNORECASE)
    if match is None:
        raise wrong
    try:
        if match[2] is None:
            amount, kind = parse_duration_s(match[1]), "time_s"
        else:
            amount = parse_count(match[1])
            kind = "tokens" if match[2].lower().startswith("token") else "flops"
    except ValueError:
        raise wrong from None
    if amount <= 0:
        raise BudgetError(f"budget {text!r} must be more than 0; hint: write 30min, 2h, 5M tokens or 1e15 FLOP")
    return Budget(float(amount), kind)
