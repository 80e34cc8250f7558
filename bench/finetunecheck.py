"""What is wrong with the `finetune` stanzas beside their own types: unknown sets, nothing to learn from, rates."""

from __future__ import annotations

from collections.abc import Iterator

from bench import finetuning, trials
from bench.draft import Draft, Variant, value_of
from bench.evaluate import index
from bench.findings import Finding, split_hint, validate
from bench.source import DataPath
from bench.stanzas import MIN_STEPS, Finetune
from lmopt.recipe import Recipe


def findings(draft: Draft) -> Iterator[Finding]:
    """Everything that makes a stanza impossible."""
    listed = value_of(draft.data, "finetune")
    seen: set[str] = set()
    for number, raw in enumerate(listed if isinstance(listed, list | tuple) else ()):
        stanza = validate(Finetune, raw)[0]
        if stanza is None:
            continue
        path: DataPath = ("finetune", number)
        if stanza.task in seen:
            yield Finding((*path, "task"), f"`{stanza.task}` is fine-tuned on twice", "remove one of them")
        seen.add(stanza.task)
        wrong = list(_sets(stanza, path))
        yield from wrong or _arms(draft, stanza, path)


def _sets(stanza: Finetune, path: DataPath) -> Iterator[Finding]:
    named: list[tuple[DataPath, str]] = [((*path, "task"), stanza.task)]
    named += [((*path, "learn", place), name) for place, name in enumerate(stanza.learn)]
    for place, name in named:
        try:
            facts = index.find(name)
        except index.UnknownTask as error:
            yield Finding(place, *split_hint(str(error)))
            continue
        if facts is None or facts.source == index.DERIVED:
            what = "a task of the hub" if facts is None else "derived from the study's own held-out text"
            known = ", ".join(one.name for one in index.TASKS.values() if one.source != index.DERIVED)
            yield Finding(place, f"`{name}` is {what} and cannot be fine-tuned on", f"one of {known}")
    if stanza.task in stanza.learn:
        message = f"`{stanza.task}` is tested, so it cannot be learnt from in full"
        yield Finding((*path, "learn", stanza.learn.index(stanza.task)), message, "`test: 0.5` learns from half of it")
    elif not stanza.learn and stanza.test == 1:
        message = f"all of `{stanza.task}` is tested, so there is nothing to learn from"
        yield Finding((*path, "test"), message, "give a share below 1, or name other sets under `learn`")


def _arms(draft: Draft, stanza: Finetune, path: DataPath) -> Iterator[Finding]:
    """Every trained arm must take the rates, and learn for enough steps; the first that cannot is named."""
    for scale in draft.scales.values():
        for variant in draft.variants:
            recipe = validate(Recipe, draft.expanded(variant, scale))[0]
            if recipe is None or variant.raw.get("role") == "timing":
                continue
            found = _impossible(stanza, variant, recipe, scale.name, path)
            if found is not None:
                yield found
                return


def _impossible(stanza: Finetune, variant: Variant, recipe: Recipe, scale: str, path: DataPath) -> Finding | None:
    a_step = stanza.sequences * recipe.model.context
    if stanza.tokens < MIN_STEPS * a_step:
        message = (
            f"{stanza.tokens:,} tokens are {stanza.tokens // a_step} steps of {a_step:,} for {variant.label} at scale "
            f"`{scale}`, at least {MIN_STEPS} are needed"
        )
        place = (*path, "tokens") if "tokens" in stanza.model_fields_set else path
        return Finding(place, message, "more tokens, or fewer sequences")
    if not hasattr(recipe.optimizer, "lr"):
        return Finding(path, f"the optimizer of {variant.label} ({recipe.optimizer.kind}) has no lr to try")
    highest = max(trials.rates(stanza.lr, recipe.optimizer.lr))
    if validate(type(recipe.optimizer), {**recipe.optimizer.model_dump(), "lr": highest})[0] is None:
        message = f"{variant.label} would be tried at a learning rate of {highest:g}, which its optimizer refuses"
        return Finding((*path, "lr"), message, "lower the highest one")
    merged = finetuning.trial_values(recipe, stanza)
    wrong = validate(Recipe, merged)[1]
    return (
        Finding(path, f"{variant.label} cannot be fine-tuned at scale `{scale}`: {wrong[0].message}") if wrong else None
    )
