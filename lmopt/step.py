"""What a long-running part of this package yields: one small value a unit of work."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of finished work: an optimizer step, a batch of documents, a decoded token.

    Work is pulled: the caller times, meters and stops it from outside, between two steps.
    """

    index: int
    """Count of units finished, this one included (1 after the first)."""
    tokens: int
    """Tokens this unit processed (0 where tokens mean nothing)."""
    loss: float | None = None
    """Mean cross-entropy of the unit in nats a token, without auxiliary losses; None where there is none."""
    notes: Mapping[str, float] = field(default_factory=dict[str, float])
    """Anything else worth a line, by name with its unit: `lr`, `grad_norm`, `router_balance`, `kept_documents`."""


def run_to_end(steps: Generator[Step, None, Result]) -> Result:
    """Pull a generator to its end without looking at the steps; returns what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
