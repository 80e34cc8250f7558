"""What is wrong between a suite's `inference` and its other parts: names, models that draft, depths, room for text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench import ownmodel
from bench.datapaths import has
from bench.draft import Draft, Variant, value_of
from bench.findings import Finding, validate
from bench.inferstanza import Inference
from bench.problems import suggest
from bench.source import DataPath
from lmopt.quantities import possible
from lmopt.recipe import EarlyExit, Recipe, Speculative
from lmopt.techniques.decoding import ExitDraft, ModelDraft

HERE = ("inference",)


def findings(draft: Draft, *, look_at_files: bool = False) -> Iterator[Finding]:
    """Every mistake; none where the stanza is wrong by itself or is not there."""
    raw = draft.data.get("inference")
    stanza = validate(Inference, raw)[0] if raw is not None else None
    if not ownmodel.is_asked(draft.data):
        yield from _something_trained(draft)
    wrong = list(ownmodel.findings(draft, look_at_files=look_at_files)) if ownmodel.is_asked(draft.data) else []
    yield from wrong
    if stanza is None:
        return
    known = {variant.name: variant for variant in draft.variants}
    if stanza.own is not None:
        yield from _names(stanza, known)
        yield from _validation(draft, stanza)
        yield from _drafts(draft, stanza, known)
        yield from ownmodel.draft_findings(stanza) if look_at_files else ()
        if not any(finding.path[:2] == ownmodel.HERE for finding in wrong):
            yield from _fitting(draft, draft.baseline, stanza)
        return
    if draft.data.get("layout") == "sample":
        message = "no model is trained in the `sample` layout, so none can generate"
        yield Finding(HERE, message, "leave `inference` out, or choose another layout", at_key=True)
        return
    yield from _names(stanza, known)
    yield from _validation(draft, stanza)
    source = known.get(stanza.arm or draft.baseline.name)
    if source is None or source.raw.get("role") == "timing":
        yield _no_model(str(stanza.arm), known, (*HERE, "model"))
        return
    yield from _drafts(draft, stanza, known)
    yield from _fitting(draft, source, stanza)


def _something_trained(draft: Draft) -> Iterator[Finding]:
    """Only a checkpoint needs no arms, and only it comes with a tokenizer."""
    if draft.data.get("arms") in ([], ()):
        yield Finding(("arms",), "needs at least 1 item, got 0")
    if value_of(draft.data, "data", "tokenizer", "kind") == "given":
        message = "a given tokenizer is that of a checkpoint, and this suite trains its models"
        yield Finding(("data", "tokenizer", "kind"), message, "`kind: bpe` trains one on the training text")


def _fitting(draft: Draft, source: Variant, stanza: Inference) -> Iterator[Finding]:
    """Room and depths at the first scale where something is wrong."""
    for recipe in _recipes(draft, source):
        wrong = [*_room(stanza, recipe, draft.data["inference"]), *_depths(stanza, recipe)]
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


def _drafts(draft: Draft, stanza: Inference, known: Mapping[str, Variant]) -> Iterator[Finding]:
    target = _context(draft, known.get(stanza.arm or draft.baseline.name, draft.baseline))
    for index, arm in enumerate(stanza.arms):
        decoding: Any = arm.decoding
        if not isinstance(decoding, Speculative) or not isinstance(decoding.draft, ModelDraft):
            continue
        name, path = decoding.draft.arm, (*HERE, "arms", index, "decoding", "draft")
        if (name is None) != (stanza.own is not None):
            yield _other_kind(name, path)
        elif name is not None and (name not in known or known[name].raw.get("role") == "timing"):
            yield _no_model(name, known, (*path, "arm"))
        elif name is not None and (short := _context(draft, known[name])) < stanza.tokens <= target:
            message = f"`{name}` drafts with a context of {short}; prompt and new tokens are {stanza.tokens}"
            yield Finding((*path, "arm"), message, "give the arm more `model.context`, or write fewer tokens")


def _other_kind(arm: str | None, path: DataPath) -> Finding:
    """A draft that is an arm where the model is a checkpoint, or the other way round."""
    if arm is not None:
        message = f"`{arm}` would have to be trained, and a model that is a checkpoint is drafted for by another"
        return Finding((*path, "arm"), message, "`{kind: model, hf: FOLDER}`", at_key=True)
    message = "a checkpoint drafts for a checkpoint, and this model is trained by the study"
    return Finding((*path, "hf"), message, "`{kind: model, arm: NAME}`", at_key=True)


def _context(draft: Draft, arm: Variant) -> float:
    """The least that an arm has at any scale."""
    return min((recipe.model.context for recipe in _recipes(draft, arm)), default=math.inf)


def _recipes(draft: Draft, source: Variant) -> Iterator[Recipe]:
    for scale in draft.scales.values():
        recipe = validate(Recipe, draft.expanded(source, scale))[0]
        if recipe is not None:
            yield recipe


def _room(stanza: Inference, recipe: Recipe, raw: Any) -> Iterator[Finding]:
    needed, context = stanza.tokens, recipe.model.context
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
            message = f"exit {decoding.exits[-1]} of a model of {layers} layers: {possible(1, layers - 1)}"
            yield Finding((*path, "exits"), message)
        if (
            isinstance(decoding, Speculative)
            and isinstance(decoding.draft, ExitDraft)
            and decoding.draft.layer >= layers
        ):
            message = f"drafts of layer {decoding.draft.layer} of {layers}: {possible(1, layers - 1)}"
            yield Finding((*path, "draft", "layer"), message)
