"""What a fine-tuning is before it runs: the recipe of one trial, the rates that every arm tries, what that costs.

Every model is fine-tuned on the same questions in the same order for the same number of tokens, once at each learning
rate; the best rate by questions that are neither learnt from nor tested is what is tested.
"""

from __future__ import annotations

from typing import Any

from bench.case import Case, identify
from bench.stanzas import Finetune
from bench.trials import rates
from lmopt import cost
from lmopt.recipe import NextToken, Packed, Recipe, Scratch, Shuffled

OWN_TEST_SHARE = 0.5
"""Of a set's passages, where no other set is there to learn from."""


def case(train: Case, corpus: str, stanza: Finetune, recipe: Recipe) -> Case:
    """The fine-tuning of a training's model. Its parents: the training, the corpus (for the tokenizer)."""
    return identify(
        Case(id="", kind="finetune", arm=train.arm, scale=train.scale, seed=train.seed, horizon=train.horizon,
             parents=(train.id, corpus), purpose="finetune", recipe=trial_recipe(recipe, stanza),
             spec=_spec(stanza, recipe))
    )  # fmt: skip


def trial_recipe(recipe: Recipe, stanza: Finetune) -> Recipe:
    """One trial of a model, at its arm's own rate: its optimizer and number formats, other text, the plain loss."""
    return Recipe.model_validate(trial_values(recipe, stanza))


def trial_values(recipe: Recipe, stanza: Finetune) -> dict[str, Any]:
    """The trial's recipe as plain data."""
    micro = getattr(recipe.batching, "micro_sequences", None)
    batching = Packed(
        sequences=stanza.sequences, length=recipe.model.context,
        micro_sequences=micro if micro and stanza.sequences % micro == 0 else None,
    )  # fmt: skip
    plain = {"batching": batching, "start": Scratch(), "order": Shuffled(), "objective": NextToken()}
    return (
        recipe.model_dump(mode="json")
        | {seam: technique.model_dump(mode="json") for seam, technique in plain.items()}
        | {"data": [], "compile": False, "tokens": stanza.tokens}
    )


def _spec(stanza: Finetune, recipe: Recipe) -> dict[str, Any]:
    return {
        "task": stanza.task,
        "learn": list(stanza.learn),
        "test_share": test_share(stanza),
        "limit": stanza.limit,
        "rates": list(rates(stanza.lr, recipe.optimizer.lr)),
    }


def test_share(stanza: Finetune) -> float:
    """Share of the set's passages that models are tested on."""
    return stanza.test or (1.0 if stanza.learn else OWN_TEST_SHARE)


def flops(case: Case) -> float:
    """Training FLOPs of all trials; choosing between them and the test come on top."""
    assert case.recipe is not None
    return len(case.spec["rates"]) * cost.training_flops(case.recipe, 1.0)


def tokens(case: Case) -> int:
    """Tokens of all trials, padding included."""
    assert case.recipe is not None
    return len(case.spec["rates"]) * case.recipe.trained_tokens(1.0)
