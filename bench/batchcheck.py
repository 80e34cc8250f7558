"""What is wrong between a recipe's batching and the rest of it: too little memory, decisions of another training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.datapaths import has
from bench.draft import Draft, Variant, value_of
from bench.findings import Finding, split_hint, validate
from bench.source import DataPath
from lmopt import cost_memory
from lmopt.compute.decisions import ReplayError, fitting_decisions, sha256_of
from lmopt.recipe import AdaptiveMicro, NoiseRamp, Recipe


def memory(draft: Draft) -> Iterator[Finding]:
    """A training whose own limit is below one sequence, at the first scale where it is."""
    for variant in draft.variants:
        here, said = draft.own_words(variant)
        place = ("batching", "memory")
        for scale in draft.scales.values():
            recipe = validate(Recipe, draft.expanded(variant, scale))[0]
            lacking = None if recipe is None else cost_memory.want_of_own(recipe)
            if lacking is None:
                continue
            why, hint = split_hint(lacking)
            path = place if has(said, place) else ()
            yield Finding((*here, *path), f"{why} at scale `{scale.name}`", hint, at_key=not path)
            break


def foreign(place: DataPath, draft: Draft, variant: Variant) -> Iterator[Finding]:
    """A file of decisions that cannot be read, that the variant's recipe could not have made, or not what was said."""
    here, words = draft.own_words(variant)
    said = value_of(words, "batching", "sha256")
    for scale in draft.scales.values():
        recipe = validate(Recipe, draft.expanded(variant, scale))[0]
        if recipe is None or not isinstance(recipe.batching, NoiseRamp | AdaptiveMicro) or not recipe.batching.replay:
            continue
        try:
            fitting_decisions(recipe.batching.model_copy(update={"sha256": None}))
            found = sha256_of(Path(recipe.batching.replay))
        except ReplayError as error:
            yield Finding(place, *split_hint(str(error)))
            return
        if said not in (None, found):
            message = f"{recipe.batching.replay} holds other decisions: its SHA-256 is {found}"
            yield Finding((*here, "batching", "sha256"), message, "remove `sha256` to take it as it is")
            return
