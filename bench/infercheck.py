"""What is wrong between a suite's `inference` and its other parts: names, models that draft, depths, room for text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.draft import Draft, Variant
from bench.findings import Finding, has, validate
from bench.inferstanza import Inference
from bench.problems import suggest
from bench.source import DataPath
from lmopt.recipe import EarlyExit, Recipe, Speculative
from lmopt.techniques.decoding import ExitDraft, ModelDraft

HERE = ("inference",)


def findings(draft: Draft) -> Iterator[Finding]:
    """Every mistake; none where the stanza is wrong by itself or is not there."""
    raw = draft.data.get("inference")
    stanza = validate(Inference, raw)[0] if raw is not None else None
    if stanza is None:
        return
    known = {variant.name: variant for variant in draft.variants}
    if draft.data.get("layout") == "sample":
        message = "no model is trained in the `sample` layout, so none can generate"
        yield Finding(HERE, message, "leave `inference` out, or choose another layout", at_key=True)
        return
    yield from _names(stanza, known)
    yield from _validation(draft, stanza)
    source = known.get(stanza.model or draft.baseline.name)
    if source is None or source.raw.get("role") == "timing":
        yield _no_model(str(stanza.model), known, (*HERE, "model"))
        return
    yield from _drafts(stanza, known)
    for recipe in _recipes(draft, source):
        wrong = [*_room(stanza, recipe, raw), *_depths(stanza, recipe)]
        yield from wrong
        if wrong:
            return


def _names(stanza: Inference, known: Mapping[str, Variant]) -> Iterator[Finding]:
    taken = set(known)
    places: list[tuple[DataPath, str]] = [((*HERE, "reference", "name"), stanza.reference.name)]
    places += [((*HERE, "arms", index, "name"), arm.name) for index, arm in enumerate(stanza.arms)]
    for path, name in places:
        if name in taken:
            yield Finding(path, f"name {name!r} is given twice", "give each its own")
        taken.add(name)


def _validation(draft: Draft, stanza: Inference) -> Iterator[Finding]:
    data: Any = draft.data.get("data")
    given = data.get("validation") if isinstance(data, Mapping) else None
    sets = given if isinstance(given, list | tuple) else [{"name": "holdout"}]
    names = [str(one.get("name", "holdout")) for one in sets if isinstance(one, Mapping)]
    if stanza.validation is not None and stanza.validation not in names:
        message = f"no validation set is named {stanza.validation!r}"
        yield Finding((*HERE, "validation"), message, suggest(stanza.validation, names))


def _no_model(name: str, known: Mapping[str, Variant], path: DataPath) -> Finding:
    trained = [one for one, variant in known.items() if variant.raw.get("role") != "timing"]
    if name in known:
        return Finding(
            path, f"`{name}` is a timing arm: it is never trained to the end", f"one of {', '.join(trained)}"
        )
    return Finding(path, f"no arm is named {name!r}", suggest(name, trained))


def _drafts(stanza: Inference, known: Mapping[str, Variant]) -> Iterator[Finding]:
    for index, arm in enumerate(stanza.arms):
        decoding: Any = arm.decoding
        if isinstance(decoding, Speculative) and isinstance(decoding.draft, ModelDraft):
            name = decoding.draft.arm
            if name not in known or known[name].raw.get("role") == "timing":
                yield _no_model(name, known, (*HERE, "arms", index, "decoding", "draft", "arm"))


def _recipes(draft: Draft, source: Variant) -> Iterator[Recipe]:
    for scale in draft.scales.values():
        recipe = validate(Recipe, draft.expanded(source, scale))[0]
        if recipe is not None:
            yield recipe


def _room(stanza: Inference, recipe: Recipe, raw: Any) -> Iterator[Finding]:
    needed, context = stanza.prompt_tokens + stanza.new_tokens, recipe.model.context
    if needed > context:
        path = next(((*HERE, name) for name in ("new_tokens", "prompt_tokens") if has(raw, (name,))), HERE)
        message = (
            f"{stanza.prompt_tokens} tokens of prompt and {stanza.new_tokens} new ones exceed the context of {context}"
        )
        yield Finding(path, message, "lower one of them, or give the scale more `context`")


def _depths(stanza: Inference, recipe: Recipe) -> Iterator[Finding]:
    layers = recipe.model.layers
    for index, arm in enumerate(stanza.arms):
        decoding: Any = arm.decoding
        path = (*HERE, "arms", index, "decoding")
        if isinstance(decoding, EarlyExit) and decoding.exits[-1] >= layers:
            message = f"exit {decoding.exits[-1]} of a model of {layers} layers: 1 to {layers - 1} are possible"
            yield Finding((*path, "exits"), message)
        if (
            isinstance(decoding, Speculative)
            and isinstance(decoding.draft, ExitDraft)
            and decoding.draft.layer >= layers
        ):
            message = f"drafts of layer {decoding.draft.layer} of {layers}: 1 to {layers - 1} are possible"
            yield Finding((*path, "draft", "layer"), message)
