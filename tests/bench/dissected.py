"""Synthetic studies with an ablation: factors of known savings, and a known departure from multiplying."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.stats.fractions import Fraction
from tests.bench.synthetic import Planted, Synthetic, synthesize

CHANGES = {"clean": "data: none -> exact_dedup", "moe": "ffn: swiglu -> moe", "lr": "optimizer.lr: 0.003 -> 0.002"}


def taken_apart(
    factors: Mapping[str, float],
    *,
    pairs: Mapping[tuple[str, str], float] | None = None,
    generators: Sequence[str] | None = (),
    designs: Sequence[str] = ("factorial",),
    **world: Any,
) -> Synthetic:
    """A study whose arms are the combinations of factors that a design asks for.

    Args:
        factors: factor -> what it saves alone of the training FLOPs.
        pairs: two factors -> ln of what they cost together beyond their savings multiplied.
        generators: of the factorial; None leaves it out, and the arms are each factor alone and all but each.
        world: as `synthesize`.
    """
    names = tuple(factors)
    every = [frozenset(on) for size in range(len(names) + 1) for on in itertools.combinations(range(len(names)), size)]
    if generators is None:
        wanted = {on for on in every if len(on) in (0, 1, len(names) - 1, len(names))}
    else:
        wanted = set(Fraction(len(names), tuple(generators)).runs) | {every[0], every[-1]}
    cells = {_name(names, on): tuple(names[n] for n in sorted(on)) for on in every if on in wanted}
    arms = [
        Planted(arm, saving=_saving(on, factors, pairs or {})) for arm, on in cells.items() if on
    ]  # fmt: skip
    synthetic = synthesize(arms=arms, layout="economical", horizons=(0.4, 0.7, 1.0, 1.4, 2.0),
                           **({"items": 0, "timing_blocks": 2} | world))  # fmt: skip
    design = synthetic.plan["design"] | {
        "ablation": {
            "of": "all", "designs": list(designs), "cells": {arm: list(on) for arm, on in cells.items()},
            "factors": {name: CHANGES.get(name, f"a change of {name}") for name in names},
            "generators": None if generators is None else list(generators),
        }
    }  # fmt: skip
    return replace(synthetic, plan=synthetic.plan | {"design": design})


def _name(names: Sequence[str], on: frozenset[int]) -> str:
    if not on:
        return "dense"
    if len(on) == len(names):
        return "all"
    if len(on) == 1:
        return f"only-{names[min(on)]}"
    return "-".join(["with", *(names[n] for n in sorted(on))])


def _saving(on: Sequence[str], factors: Mapping[str, float], pairs: Mapping[tuple[str, str], float]) -> float:
    log_cost = sum(math.log(1 - factors[name]) for name in on)
    log_cost += sum(extra for both, extra in pairs.items() if set(both) <= set(on))
    return 1 - math.exp(log_cost)
