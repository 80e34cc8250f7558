"""What a way of decoding needs before it runs: its cases, and what they will cost.

A case loads one model (trained by the study, or a checkpoint) and lets the reference and the arm write behind the same
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.case import Case, identify
from bench.inferstanza import Inference, InferenceArm
from bench.ownmodel import folder_of
from lmopt import cost
from lmopt.arch.hfcheckpoint import described
from lmopt.cost_decoding import plain_flops_per_token
from lmopt.recipe import Recipe

RUNS = 4
"""Times that each prompt is continued: reference, arm, arm, reference."""
TEXTS_AT_ONCE = 64
"""Texts read together where quality is judged (bench.writers.BATCH)."""
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int8_dynamic": 1}
"""Of a weight in a format that is decoded with."""
RUNTIME_BYTES = 13 * 2**20
"""What a process takes beside tensors: compiled products, thread pools."""
TEXT_BYTES_A_TOKEN = 3
"""Of a store of texts, at least: what a vocabulary of a thousand gets from English."""
CHECKED = ("fp32", "fp32")
"""Formats in which counts and texts are checked: two sides stand beside each other."""

ModelOf = Callable[[str], Case]
"""Arm -> the training of its model, at the scale and seed in question."""


def cases(asked: Inference, recipe: Recipe, scale: str, seed: int, corpus: Case, model_of: ModelOf) -> Iterator[Case]:
    """Each way of decoding against the reference. Parents: the trainings of target and draft if any, the corpus.

    Args:
        recipe: of the model that generates.
    """
    common = asked.model_dump(mode="json", exclude={"model", "reference", "arms"})
    for arm in asked.arms:
        own, parents = _models(asked, arm, model_of)
        spec = common | own | {
            "decoding": arm.decoding.model_dump(mode="json"),
            "against": asked.reference.name,
            "reference": asked.reference.decoding.model_dump(mode="json"),
            "lossless": arm.lossless(asked.reference.decoding),
        }  # fmt: skip
        yield identify(
            Case(id="", kind="generate", arm=arm.name, scale=scale, seed=seed, parents=(*parents, corpus.id),
                 purpose="generate", recipe=recipe, spec=spec)
        )  # fmt: skip


def _models(asked: Inference, arm: InferenceArm, model_of: ModelOf) -> tuple[dict[str, Any], list[str]]:
    """Which models a case loads: what its spec says of them, and the trainings that it waits for."""
    draft = getattr(arm.decoding, "draft", None)
    trained, given = getattr(draft, "arm", None), getattr(draft, "hf", None)
    spec: dict[str, Any] = {}
    parents: list[str] = []
    if asked.own is not None:
        spec["own"] = asked.own.model_dump(mode="json")
    else:
        parents.append(model_of(asked.arm or "").id)
    if trained is not None:
        found = model_of(trained)
        parents.append(found.id)
        spec["draft_recipe"] = None if found.recipe is None else found.recipe.model_dump(mode="json")
    elif given is not None:
        spec["draft_recipe"] = described(folder_of(given)).recipe.model_dump(mode="json")
    return spec, parents


# --- what it costs -------------------------------------------------------------------------------


def flops(case: Case) -> float:
    """FLOPs of the timed texts if every one is written a token a pass; what is checked and judged comes on top."""
    assert case.recipe is not None
    prompt, new = case.spec["prompt_tokens"], case.spec["new_tokens"]
    text = cost.forward_flops(case.recipe, prompt).total
    text += (new - 1) * plain_flops_per_token(case.recipe, prompt=prompt, new=new - 1)
    return RUNS * case.spec["prompts"] * text


def memory_bytes(case: Case) -> int:
    """Peak of the process over the empty one: models as loaded, weights as decoded with, and again for the checks.

    A Llama of 47M parameters took 854, 938 and 1,642 MiB with 8-bit weights, by lookup and drafted for by its equal;
    this says 919, 976 and 1,663.
    """
    assert case.recipe is not None
    formats = [case.spec["reference"]["weights"], case.spec["decoding"]["weights"]]
    held = _model_bytes(case.recipe, [*formats, *CHECKED])
    if case.spec.get("draft_recipe"):
        held += _model_bytes(Recipe.model_validate(case.spec["draft_recipe"]), [formats[1], *CHECKED])
    held += _store_bytes(case.spec["decoding"].get("draft") or {})
    model, length = case.recipe.model, case.spec["prompt_tokens"] + case.spec["new_tokens"]
    cache = TEXTS_AT_ONCE * length * 2 * model.layers * model.key_heads * model.head_width * 4
    states = (
        TEXTS_AT_ONCE * length * 4 * (cost.ffn_cost(case.recipe.ffn, model.width).activations_per_token + model.width)
    )
    return round(held + cache + states) + RUNTIME_BYTES


def _store_bytes(draft: Mapping[str, Any]) -> float:
    """Texts that drafts are looked up in: their tables, and what sorting a table takes."""
    if not draft.get("corpus"):
        return 0.0
    return draft["corpus"] / TEXT_BYTES_A_TOKEN * (16 * draft["longest"] + 60)


def _model_bytes(recipe: Recipe, formats: list[str]) -> float:
    """A model in float32, and its weights laid out anew in each of these formats."""
    count, model = cost.parameters(recipe), recipe.model
    untied = 0 if model.tied_head else count.embedding
    inner = count.total - count.embedding - untied
    keys_again = model.layers * 2 * model.width * model.key_heads * model.head_width
    total = 4.0 * count.total
    for name in formats:
        embedding = count.embedding * (4 if name == "fp32" else 2)
        total += embedding + WEIGHT_BYTES[name] * (count.embedding + inner + keys_again)
    return total
