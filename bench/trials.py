"""Learning-rate trials as cases: which settings each arm tries, and the recipe that the best of them gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

from bench.case import Case, identify
from bench.record import Record
from bench.stanzas import Multiples, Rates, Spaced, Tune
from bench.tuning import Choice, choose, trial_of
from lmopt.recipe import Recipe

FIRST_SET = "val_loss"
"""Metric of the first validation set."""


def rates(lr: Rates, own: float) -> tuple[float, ...]:
    """Learning rates that an arm with this one of its own tries."""
    match lr:
        case Spaced():
            return lr.values()
        case Multiples():
            return tuple(float(f"{own * factor:.6g}") for factor in lr.times)
        case _:
            return lr


def settings(tune: Tune, recipe: Recipe) -> list[dict[str, float]]:
    """Every setting that an arm of this recipe tries: the same number for every arm."""
    tried = rates(tune.lr, recipe.optimizer.lr)
    if tune.weight_decay is None:
        return [{"lr": lr} for lr in tried]
    return [{"lr": lr, "weight_decay": decay} for lr, decay in product(tried, tune.weight_decay)]


def at(recipe: Recipe, setting: Mapping[str, float]) -> Recipe:
    """The recipe with a setting in its optimizer."""
    optimizer = type(recipe.optimizer).model_validate({**recipe.optimizer.model_dump(), **setting})
    return recipe.model_copy(update={"optimizer": optimizer})


def trials(
    tune: Tune, arm: str, scale: str, recipe: Recipe, data: Case, begun: Callable[[int], tuple[str, ...]]
) -> Iterator[Case]:
    """The trials of an arm at a scale: short trainings of their own seeds.

    `begun` names the training of a seed that the arm starts or learns from, if it does.
    """
    for setting, seed in product(settings(tune, recipe), tune.seed):
        yield identify(
            Case(id="", kind="train", arm=arm, scale=scale, seed=seed, horizon=tune.share,
                 parents=(data.id, *begun(seed), *data.parents), purpose="tune", recipe=at(recipe, setting),
                 spec={"trial": setting})
        )  # fmt: skip


def metric(tune: Tune, first_set: str) -> str:
    """The metric that decides between trials, where the first validation set has this name."""
    return FIRST_SET if tune.validation in (None, first_set) else f"{FIRST_SET}/{tune.validation}"


def choice(case: Case, cases: Mapping[str, Case], finished: Mapping[str, Record]) -> Choice | None:
    """The best setting for a training whose trials have all finished; None where all of them diverged."""
    mine = [parent for parent in case.parents if cases[parent].purpose == "tune"]
    return choose(trial_of(finished[parent], case.spec["tune"]["metric"]) for parent in mine)
