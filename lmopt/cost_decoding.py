"""Closed form of what generating a token costs, in FLOPs. No torch here.

As in lmopt/cost.py a multiply-add is 2 FLOPs and matrix products and attention count, the head included. A decoded
token attends to the tokens that are there, so its attention is counted as executed: one query times so many keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmopt.cost import forward_flops
from lmopt.recipe import EarlyExit, OneByOne, Recipe, Speculative
from lmopt.step import Step
from lmopt.techniques.decoding import ExitDraft, ModelDraft


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """Forward FLOPs of one token that attends to a number of keys, part by part."""

    layer: float
    """One block: projections, attention, feed-forward, router."""
    key_value: float
    """Only the key and value products of one block."""
    head: float
    layers: int

    @property
    def total(self) -> float:
        """A token that goes through the whole model."""
        return self.layers * self.layer + self.head


def token_flops(recipe: Recipe, keys: float) -> TokenFlops:
    """Cost of one token when `keys` tokens are visible to it, itself included."""
    model, one = recipe.model, forward_flops(recipe, 1)
    linear = (one.projections + one.ffn + one.router) / model.layers
    return TokenFlops(
        layer=linear + 4 * keys * model.width,
        key_value=4 * model.width * model.key_heads * model.head_width,
        head=one.head,
        layers=model.layers,
    )


def plain_flops_per_token(recipe: Recipe, *, prompt: int, new: int) -> float:
    """Mean FLOPs of a generated token behind a prompt of so many tokens, the reading of the prompt left out."""
    return token_flops(recipe, prompt + (new + 1) / 2).total


def early_exit_flops_per_token(flops: TokenFlops, left: Mapping[int, int], exits: tuple[int, ...]) -> float:
    """Mean FLOPs of a token when tokens leave at different depths.

    A token that leaves behind layer e ran e layers, the head at every exit up to there, and the key and value products
    of the layers it skipped, which later tokens look at.

    Args:
        left: layer -> tokens that left behind it; the model's depth counts those that went all the way.
        exits: layers with an exit, the last one (the depth) left out.
    """
    total = 0.0
    for layer, tokens in left.items():
        heads = sum(exit_layer < layer for exit_layer in exits) + 1
        skipped = flops.layers - layer
        total += tokens * (layer * flops.layer + skipped * flops.key_value + heads * flops.head)
    return total / sum(left.values())


# --- a text, step by step ------------------------------------------------------------------------


def written_flops(
    decoding: OneByOne | EarlyExit | Speculative,
    recipe: Recipe,
    steps: Iterable[Step],
    *,
    prompt: int,
    draft: Recipe | None = None,
) -> float:
    """FLOPs executed for one text behind its first token, from what its steps say of themselves.

    Keys are counted as the kernels see them: a pass over several tokens computes every one against all that are there.

    Args:
        steps: those behind the first, which read the prompt.
        prompt: tokens of the prompt.
        draft: of the smaller model, where one drafts; what it reads of the prompt is counted.
    """
    length, total = prompt + 1, 0.0
    reader = _DraftReader(draft) if draft is not None else None
    for step in steps:
        match decoding:
            case Speculative():
                total += _round_flops(decoding, recipe, step, length, reader)
            case EarlyExit():
                total += _early_flops(decoding, token_flops(recipe, length), step)
            case _:
                total += token_flops(recipe, length).total
        length += step.tokens
    return total


def _early_flops(decoding: EarlyExit, flops: TokenFlops, step: Step) -> float:
    left = {int(name.removeprefix("left/")): int(count) for name, count in step.notes.items()}
    asked = decoding.exits if decoding.threshold != 1 else ()
    if decoding.measure == "similarity":  # an exit compares states; only the one that is taken runs the head
        asked = ()
    return sum(left.values()) * early_exit_flops_per_token(flops, left, asked)


def _round_flops(decoding: Speculative, recipe: Recipe, step: Step, length: int, reader: _DraftReader | None) -> float:
    """One check, and what was drafted for it."""
    drafted, kept = int(step.notes["drafted"]), int(step.notes["kept"])
    check = token_flops(recipe, length + drafted)
    if not isinstance(decoding.draft, ExitDraft):
        total = (drafted + 1) * check.total
        if reader is not None and isinstance(decoding.draft, ModelDraft):
            total += reader.flops(length, drafted, kept)
        return total
    first = decoding.draft.layer
    alone = sum(first * token_flops(recipe, length + place).layer for place in range(drafted + 1))
    return alone + (drafted + 1) * (recipe.model.layers - first) * check.layer + (2 * drafted + 1) * check.head


class _DraftReader:
    """How far a smaller model has read the text: what it drafts from, it must have read."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.read = recipe, 0

    def flops(self, length: int, drafted: int, kept: int) -> float:
        """Of drafting so many tokens behind a text of `length`."""
        total = 0.0
        for place in range(drafted):
            one = token_flops(self.recipe, length + place)
            total += (length + place - self.read) * one.layers * one.layer + one.head
            self.read = length + place
        if drafted:
            self.read = min(self.read, length + kept)
        return total
