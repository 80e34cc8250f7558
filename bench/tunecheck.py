"""What is wrong with the `tune` stanza beside its own types: against the seeds, arms, tokens and validation sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench import trials
from bench.datapaths import has
from bench.draft import Draft, Variant, value_of
from bench.findings import Finding, validate
from bench.problems import suggest
from bench.source import DataPath
from bench.stanzas import MAX_TRIALS, MIN_STEPS, Multiples, Spaced, Tune
from lmopt.data.spec import Data
from lmopt.recipe import Recipe

KNOBS = {"lr": ("optimizer", "lr"), "weight_decay": ("optimizer", "weight_decay")}
"""What a trial sets -> where it stands in a recipe."""


def findings(draft: Draft) -> Iterator[Finding]:
    """Everything that makes the stanza impossible or unfair."""
    raw = draft.data.get("tune")
    tune = validate(Tune, raw)[0] if isinstance(raw, Mapping) else None
    if tune is None:
        return
    yield from _seeds(draft, tune)
    yield from _grid(tune)
    yield from _validation(draft, tune)
    yield from _overridden(draft, tune)
    yield from _arms(draft, tune)


def _seeds(draft: Draft, tune: Tune) -> Iterator[Finding]:
    study = value_of(draft.data, "over", "seed")
    used = study if isinstance(study, list | tuple) else (0, 1, 2)  # as written: it may hold anything
    given = has(draft.data, ("tune", "seed"))
    for index, seed in enumerate(tune.seed):
        path: DataPath = ("tune", "seed", index) if given else ("tune",)
        if seed in used:
            hint = "a choice made on a study's own seeds fits their noise: take others, for example 1000000"
            yield Finding(path, f"seed {seed} is one of the study's own", hint)
        elif seed in tune.seed[:index]:
            yield Finding(path, f"seed {seed} is given twice", "give each its own")


def _grid(tune: Tune) -> Iterator[Finding]:
    listed = {"lr": tune.lr.times if isinstance(tune.lr, Multiples) else tune.lr, "weight_decay": tune.weight_decay}
    for name, values in listed.items():
        if values is None or isinstance(values, Spaced):
            continue
        for index, value in enumerate(values):
            if value in values[:index]:
                path = ("tune", name, "times", index) if isinstance(tune.lr, Multiples) and name == "lr" else (
                    "tune", name, index)  # fmt: skip
                yield Finding(path, f"{value:g} is given twice", "give each its own")
    count = len(trials.rates(tune.lr, 1e-3)) * len(tune.weight_decay or (0.0,)) * len(tune.seed)
    if count > MAX_TRIALS:
        yield Finding(("tune",), f"{count} trials an arm, at most {MAX_TRIALS} are allowed", "fewer points or seeds")


def _validation(draft: Draft, tune: Tune) -> Iterator[Finding]:
    data = validate(Data, draft.data.get("data"))[0]
    if tune.validation is None or data is None:
        return
    known = [one.name for one in data.validation]
    if tune.validation not in known:
        hint = suggest(tune.validation, known)
        yield Finding(("tune", "validation"), f"no validation set is named {tune.validation!r}", hint)


def _overridden(draft: Draft, tune: Tune) -> Iterator[Finding]:
    """An arm may not set what its trials decide: it would silently be replaced."""
    knobs = [] if isinstance(tune.lr, Multiples) else ["lr"]
    knobs += ["weight_decay"] if tune.weight_decay is not None else []
    for variant in draft.arms:
        if variant.raw.get("role") == "timing":
            continue
        for name in knobs:
            if has(variant.change, KNOBS[name]):
                path = (*variant.path, "change", *KNOBS[name])
                hint = "leave it to the trials"
                hint += ", or give `tune.lr` as `{times: [...]}` of each arm's own rate" if name == "lr" else ""
                message = f"arm `{variant.name}` sets optimizer.{name}, which its tuning trials decide"
                yield Finding(path, message, hint, at_key=True)
        if isinstance(tune.lr, Multiples) and _is_only_rate(variant.change):
            message = f"arm `{variant.name}` differs in its learning rate alone, which its tuning trials decide"
            yield Finding((*variant.path, "change"), message, "leave the arm out, or leave out `tune`", at_key=True)


def _is_only_rate(change: Mapping[str, Any]) -> bool:
    optimizer = change.get("optimizer")
    return set(change) == {"optimizer"} and isinstance(optimizer, Mapping) and set(optimizer) == {"lr"}


def _arms(draft: Draft, tune: Tune) -> Iterator[Finding]:
    """Every trained arm must have the knobs, stay within their bounds, and train for enough steps."""
    said: set[DataPath] = set()
    for scale in draft.scales.values():
        for variant in draft.variants:
            recipe = validate(Recipe, draft.expanded(variant, scale))[0]
            if recipe is None or variant.raw.get("role") == "timing":
                continue
            found = _impossible(tune, variant, recipe, scale.name)
            if found is not None and found.path not in said:
                said.add(found.path)
                yield found


def _impossible(tune: Tune, variant: Variant, recipe: Recipe, scale: str) -> Finding | None:
    missing = [name for name in KNOBS if (name == "lr" or tune.weight_decay) and not hasattr(recipe.optimizer, name)]
    if missing:
        message = f"the optimizer of {variant.label} ({recipe.optimizer.kind}) has no {missing[0]} to tune"
        return Finding(("tune", missing[0]), message)
    highest = max(trials.rates(tune.lr, recipe.optimizer.lr))
    if validate(type(recipe.optimizer), {**recipe.optimizer.model_dump(), "lr": highest})[0] is None:
        message = f"{variant.label} would be tried at a learning rate of {highest:g}, which its optimizer refuses"
        return Finding(("tune", "lr"), message, "lower the highest one")
    steps = recipe.steps(tune.share)
    if steps < MIN_STEPS:
        message = (
            f"a trial of {variant.label} would have {steps} steps at scale `{scale}`, at least {MIN_STEPS} are needed"
        )
        hint = f"raise `share` (now {tune.share:g}) or the scale's tokens"
        return Finding(("tune", "share") if "share" in tune.model_fields_set else ("tune",), message, hint)
    return None
