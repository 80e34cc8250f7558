"""A combined change taken apart: what each factor saves alone, within the whole and on average, and how they combine.

Every cell (the baseline with a set of factors on) ends at horizon 1.0 and is read on its baseline's curve: its value is
ln(C_cell / C_baseline) at equal loss, in training FLOPs, preparation left out. On this scale savings that multiply
add, so an interaction is a departure from multiplying. Factors count as savings with one sign everywhere: positive
where the factor makes training cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench import savings
from bench.design import AblationDesign
from bench.stats import fractions
from bench.stats.effect import Effect
from bench.stats.fractions import Fraction
from bench.stats.layout import Layout, product_weights
from bench.study import Study
from bench.words import finite, interval, listed, percent, saved, several

MAX_ALIAS = 3
"""Factors of the largest interactions that are named as aliases; larger ones are taken to be nothing."""


@dataclass(frozen=True)
class Ablation:
    """The cells of an ablation at one scale, read."""

    design: AblationDesign
    baseline: str
    layout: Layout
    missing: Mapping[str, str]
    """Cell -> why it has no value."""
    dropped: Mapping[int, str]
    """Seed -> why it is left out."""
    alpha: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The factors in order."""
        return tuple(self.design.factors)

    @cached_property
    def fraction(self) -> Fraction | None:
        """The factorial part."""
        return None if self.design.generators is None else Fraction(len(self.names), self.design.generators)

    @cached_property
    def runs(self) -> dict[str, fractions.Effect]:
        """The cells of the factorial part, each with the factors that are on."""
        wanted = set(self.fraction.runs) if self.fraction else set[fractions.Effect]()
        by_cell = {arm: frozenset(map(self.names.index, on)) for arm, on in self.design.cells.items()}
        return {arm: on for arm, on in by_cell.items() if on in wanted}

    @cached_property
    def factorial(self) -> Layout:
        """The factorial part of the table alone: there all cells weigh the same."""
        rows = [self.layout.cells.index(cell) for cell in self.runs]
        return Layout(tuple(self.runs), self.layout.y[rows])

    def cell(self, *on: str) -> str | None:
        """The arm that has exactly these factors on."""
        return next((arm for arm, parts in self.design.cells.items() if set(parts) == set(on)), None)

    def why_not(self, *cells: str) -> str | None:
        """Why these cells cannot be compared; None where they can."""
        reasons = [f"{cell}: {self.missing[cell]}" for cell in cells if cell in self.missing]
        return listed(reasons, 2) if reasons else None if self.layout.blocks else "no seed has a reading of every arm"


def judge(study: Study, scale: str, alpha: float, waiting: str | None) -> dict[str, Any]:
    """Everything about the ablation at a scale, ready for verdict.json.

    Args:
        alpha: one-sided error of each interval; nothing is adjusted for their number.
        waiting: why the study is not finished, if it is not.
    """
    ablation = _read(study, scale, alpha)
    if waiting is not None:
        empty = Layout((), ablation.layout.y[:0])
        ablation = Ablation(ablation.design, ablation.baseline, empty, dict.fromkeys(ablation.design.cells, waiting),
                            ablation.dropped, alpha)  # fmt: skip
    layout = ablation.layout
    return {
        "n_seeds": layout.blocks, "dropped_seeds": {str(seed): why for seed, why in ablation.dropped.items()},
        "sd": math.sqrt(layout.residual_squares / layout.df) if layout.df > 0 else None, "df": layout.df,
        "cells": [_cell(ablation, arm) for arm in ablation.design.cells],
        "factors": {name: _factor(ablation, name) for name in ablation.names},
        "interactions": _interactions(ablation),
        "multiply": _multiply(ablation),
    }  # fmt: skip


# --- reading -------------------------------------------------------------------------------------


def _read(study: Study, scale: str, alpha: float) -> Ablation:
    """The table over the seeds in which every cell that can be read has a value.

    A cell with a censored seed is left out whole, not that seed alone: what is known of it is that it is extreme.
    """
    design, baseline = study.design.ablation, study.design.baseline
    assert design is not None
    values: dict[str, dict[int, float]] = {}
    missing: dict[str, str] = {}
    dropped: dict[int, str] = {}
    for arm in study.design.arms:
        if arm.name not in design.cells:
            continue
        read = savings.on_reference(study, arm, scale)
        beyond = [seed for seed, value in read.by_seed.items() if not value.exact]
        if beyond:
            missing[arm.name] = f"seed {beyond[0]} ended beyond the ends of {baseline}'s curve: give it other horizons"
        elif not read.by_seed:
            missing[arm.name] = next(iter(read.dropped.values()), "no training has finished")
        else:
            values[arm.name] = {seed: value.low for seed, value in read.by_seed.items()}
            dropped |= read.dropped
    seeds = {seed for row in values.values() for seed in row}
    table = {arm: dict.fromkeys(seeds, 0.0) if arm == baseline else values.get(arm, {}) for arm in design.cells}
    return Ablation(
        design, baseline, Layout.of({arm: row for arm, row in table.items() if row}), missing, dropped, alpha
    )


def _cell(ablation: Ablation, arm: str) -> dict[str, Any]:
    """One arm against the baseline."""
    found: dict[str, Any] = {"arm": arm, "factors": list(ablation.design.cells[arm])}
    if arm == ablation.baseline:
        return found | {"saving": 0.0, "bounds": [None, None], "outcome": None, "why": "the baseline"}
    return found | _saving(ablation, {arm: 1.0, ablation.baseline: -1.0})


def _factor(ablation: Ablation, name: str) -> dict[str, Any]:
    """What a factor saves alone, within the whole, and on average; None where the design has no arm that says so."""
    whole, rest = ablation.design.of, [other for other in ablation.names if other != name]
    within = _difference(ablation, whole, ablation.cell(*rest))
    if within is not None and within["saving"] is not None:
        cost = [None if end is None or end >= 1 else 1 / (1 - end) - 1 for end in within["bounds"]]
        within |= {"cost_without": 1 / (1 - within["saving"]) - 1, "cost_without_bounds": cost}
        within["why"] = f"without {name}, {whole} needs {_more(within['cost_without'], cost)} training FLOPs"
    found: dict[str, Any] = {
        "change": ablation.design.factors[name],
        "alone": _difference(ablation, ablation.cell(name), ablation.baseline),
        "within": within,
        "average": None if ablation.fraction is None else _average(ablation, name),
    }
    return found


def _more(share: float, bounds: Sequence[float | None]) -> str:
    """`3.1% more [-2.0, 8.4]`, said the way round that it lies."""
    low, high = bounds
    if share < 0:
        low, high = (None if high is None else -high), (None if low is None else -low)
    text = f"{percent(abs(share))} {'more' if share >= 0 else 'fewer'}"
    return text if low is None and high is None else f"{text} {interval([low, high])}"


def _difference(ablation: Ablation, arm: str | None, against: str | None) -> dict[str, Any] | None:
    if arm is None or against is None:
        return None
    return _saving(ablation, {arm: 1.0, against: -1.0})


def _saving(ablation: Ablation, weights: Mapping[str, float]) -> dict[str, Any]:
    """A contrast of ln cost as a saving."""
    why = ablation.why_not(*weights)
    if why:
        return _nothing(why)
    return _as_saving(ablation.layout.contrast(weights), ablation.alpha)


def _as_saving(effect: Effect, alpha: float) -> dict[str, Any]:
    ends = effect.upper(alpha), effect.lower(alpha)
    low, high = (finite(-math.expm1(end)) if math.isfinite(end) else None for end in ends)
    outcome = "SAVES" if low is not None and low > 0 else "COSTS" if high is not None and high < 0 else "UNCLEAR"
    assert effect.value is not None
    return {
        "saving": -math.expm1(effect.value), "bounds": [low, high], "df": effect.df, "how": effect.how,
        "outcome": outcome, "why": "one seed gives no interval" if effect.se is None else None,
    }  # fmt: skip


def _nothing(why: str) -> dict[str, Any]:
    return {"saving": None, "bounds": [None, None], "df": None, "how": None, "outcome": "NOT MEASURED", "why": why}


# --- factorial -----------------------------------------------------------------------------------


def _average(ablation: Ablation, name: str) -> dict[str, Any]:
    """The main effect."""
    effect = frozenset({ablation.names.index(name)})
    why = ablation.why_not(*ablation.runs)
    found = _nothing(why) if why else _as_saving(ablation.factorial.effect(effect, ablation.runs), ablation.alpha)
    return found | {"aliases": _aliases(ablation, effect)}


def _aliases(ablation: Ablation, effect: fractions.Effect) -> list[str]:
    """What an effect cannot be told from, up to three factors."""
    assert ablation.fraction is not None
    return [
        fractions.named(other, ablation.names)
        for other in ablation.fraction.aliases(effect)
        if 0 < len(other) <= MAX_ALIAS
    ]


def _interactions(ablation: Ablation) -> list[dict[str, Any]]:
    """Each pair of factors: the effect on ln cost, and how far the pair departs from multiplying."""
    if ablation.fraction is None:
        return []
    found: list[dict[str, Any]] = []
    why = ablation.why_not(*ablation.runs)
    for pair, *_ in ablation.fraction.effects():
        if len(pair) != 2:
            continue
        one: dict[str, Any] = {
            "factors": [ablation.names[factor] for factor in sorted(pair)], "aliases": _aliases(ablation, pair),
            "effect": None, "bounds": [None, None], "departure": None, "departure_bounds": [None, None],
            "outcome": "NOT MEASURED", "why": why,
        }  # fmt: skip
        if why is None:
            one |= _departure(ablation.factorial.effect(pair, ablation.runs), 2.0, ablation.alpha)
        found.append(one)
    return found


def _departure(effect: Effect, times: float, alpha: float) -> dict[str, Any]:
    """How much more the factors cost together than their savings multiplied say.

    The interaction of two factors is half the difference between one's effect with and without the other (Montgomery,
    equation 6.3), so the pair costs exp(2 x interaction) times what multiplying says.
    """
    value, bounds = effect.value, [finite(effect.lower(alpha)), finite(effect.upper(alpha))]
    assert value is not None
    ends = [None if end is None else math.expm1(times * end) for end in bounds]
    low, high = bounds
    outcome = "NO DEPARTURE SHOWN"
    if low is not None and low > 0:
        outcome = "LESS THAN THE PRODUCT"
    elif high is not None and high < 0:
        outcome = "MORE THAN THE PRODUCT"
    return {
        "effect": value, "bounds": bounds, "departure": math.expm1(times * value), "departure_bounds": ends,
        "df": effect.df, "how": effect.how, "outcome": outcome,
        "why": "one seed gives no interval" if effect.se is None else None,
    }  # fmt: skip


# --- do savings multiply -------------------------------------------------------------------------


def _multiply(ablation: Ablation) -> dict[str, Any]:
    """The measured cost of the whole over the product of the single factors' costs."""
    base, whole = ablation.baseline, ablation.design.of
    singles = [ablation.cell(name) for name in ablation.names]
    found: dict[str, Any] = {
        "measured": None, "product": None, "effect": None, "bounds": [None, None], "departure": None,
        "departure_bounds": [None, None], "outcome": "NOT MEASURED", "by": None, "se": None,
    }  # fmt: skip
    known = [cell for cell in singles if cell is not None]
    if len(known) == len(singles):
        why, by = ablation.why_not(base, whole, *known), "measured singles"
        effect = None if why else ablation.layout.contrast(product_weights(whole, known, base))
    else:
        effect, by, why = _through_pairs(ablation)
    if why is None:
        why = ablation.why_not(base, whole)
    if effect is None or why is not None:
        return found | {"why": why}
    together = ablation.layout.contrast({whole: 1.0, base: -1.0}).value
    assert together is not None
    assert effect.value is not None
    found |= _departure(effect, 1.0, ablation.alpha) | {"by": by, "se": effect.se}
    found |= {"measured": -math.expm1(together), "product": -math.expm1(together - effect.value)}
    return found | {"why": _answer(ablation, found)}


def _through_pairs(ablation: Ablation) -> tuple[Effect | None, str, str | None]:
    """Without single arms: twice the sum of all pairs' interactions, larger ones taken to be nothing.

    Flipping one factor from the baseline changes y by its main effect less its interactions, flipping all changes it
    by the main effects alone; so ln(whole / product of singles) = 2 x sum of the interactions of pairs.
    """
    by = "interactions of pairs, larger ones taken to be nothing"
    part = ablation.fraction
    if part is None:
        return None, by, "the design has neither every factor alone nor a factorial: add `add_one`"
    if part.resolution is not None and part.resolution < 4:
        return None, by, "main effects are mixed with interactions at resolution III: add `add_one`"
    why = ablation.why_not(*ablation.runs)
    if why:
        return None, by, why
    half = len(ablation.runs) / 2
    weights = dict.fromkeys(ablation.runs, 0.0)
    for pair, *_ in part.effects():
        if len(pair) == 2:
            for cell, run in ablation.runs.items():
                weights[cell] += 2 * fractions.sign(run, pair) / half
    return ablation.factorial.contrast(weights), by, None


def _answer(ablation: Ablation, found: Mapping[str, Any]) -> str:
    """The question answered in a sentence."""
    n = several(ablation.layout.blocks, "seed")
    product = f"savings multiply to {percent(found['product'])}"
    if found["product"] < 0:
        product = f"changes multiply to a cost of {percent(-found['product'])}"
    text = f"the single {product}, the whole {saved(found['measured'])}: "
    low, high = found["departure_bounds"]
    text += f"it costs {_more(found['departure'], found['departure_bounds'])} than the product says ({n})"
    match found["outcome"]:
        case "LESS THAN THE PRODUCT":
            return text + ": the factors save less together than apart"
        case "MORE THAN THE PRODUCT":
            return text + ": the factors save more together than apart"
        case _ if low is None or high is None:
            return text + ": one seed gives no interval"
        case _:
            return text + f": no departure is shown, one of more than {percent(max(abs(low), abs(high)))} is excluded"
