"""The control arms that a suite does not name: the smaller dense model and the A/A twin, made from the baseline.

Made arms are written into the resolved suite, so that everything after it sees arms like any other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.draft import Draft, Variant, value_of
from bench.findings import Finding, validate
from bench.merge import merge, placed
from bench.problems import suggest
from bench.stanzas import MAX_ARMS, Controls, Hypothesis
from lmopt import cost
from lmopt.recipe import Model, Recipe

KINDS = ("smaller", "aa")
STREAM = [("model", "init_stream")]
"""All that an A/A control changes."""
HIDDEN_STEP = 8
"""Inner widths are multiples of this, as vector units and tensor cores want them."""
LEAST_HIDDEN = 0.5
"""Of the baseline's inner width: a thinner feed-forward is a strawman, so the model gets narrower instead."""
MOST_HIDDEN = 2
"""Times the baseline's inner width, in a model that had to be narrower by a whole step."""
LEAST_NAMED, MOST_NAMED = 0.9, 1.02
"""Of the FLOPs that a claim may spend: a named smaller model below is a strawman, one above no control of them."""
NEAR = 0.97
"""Of the FLOPs that a claim may spend: a model of whole heads that uses so many is near enough."""


@dataclass(frozen=True, slots=True)
class Made:
    """The control arms of a suite that asks for them."""

    arms: tuple[Mapping[str, Any], ...]
    """Those that the suite does not declare, as plain data."""
    names: Mapping[str, str]
    """control -> the arm that carries it."""


def with_arms(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The suite with the control arms that it asks for written out; as it is where that cannot be done."""
    found = make(Draft.of(data))
    if isinstance(found, list) or not found.names:
        return data
    return {
        **data, "arms": [*data["arms"], *found.arms], "controls": {**(data.get("controls") or {}), **found.names},
    }  # fmt: skip


def findings(draft: Draft) -> list[Finding]:
    """What is wrong with a suite's controls: those that it names, and those that are to be made."""
    made = make(draft)
    return [*_named_problems(draft), *(made if isinstance(made, list) else [])]


def make(draft: Draft) -> Made | list[Finding]:
    """The control arms to be made, or why one cannot be."""
    wanted = _wanted(draft)
    recipes = _recipes(draft) if wanted and draft.has_scales else None
    if recipes is None:
        return Made((), {})  # what is wrong with the suite by itself is said where it stands
    arms: list[Mapping[str, Any]] = []
    names: dict[str, str] = {}
    wrong: list[Finding] = []
    for kind in wanted:
        arm = _twin(draft, recipes) if kind == "aa" else _smaller(draft, recipes)
        if isinstance(arm, Finding):
            wrong.append(arm)
        elif isinstance(arm, str):
            names[kind] = arm
        else:
            names[kind] = _free_name(kind, draft)
            arms.append({"name": names[kind], "role": "control", "timed": False, **arm})
    if arms and len(draft.arms) + len(arms) > MAX_ARMS:
        message = f"the controls are {len(arms)} more arms; a suite holds at most {MAX_ARMS}"
        wrong.append(Finding(("controls",), message, "remove an arm"))
    return wrong or Made(tuple(arms), names)


def spent_share(reference: Recipe, recipe: Recipe) -> float:
    """Training FLOPs at horizon 1.0 over the reference's."""
    return cost.training_flops(recipe, 1.0) / cost.training_flops(reference, 1.0)


# --- which ---------------------------------------------------------------------------------------


def _wanted(draft: Draft) -> list[str]:
    stanza = validate(Controls, draft.data.get("controls", {}))[0]
    if stanza is None:
        return []
    has_claim = any(arm.raw.get("role") == "claim" for arm in draft.arms)
    by_itself = has_claim and draft.data.get("purpose") == "confirm"
    given = {kind: getattr(stanza, kind) for kind in KINDS}
    return [kind for kind, value in given.items() if value is True or (value is None and by_itself)]


def _recipes(draft: Draft) -> dict[str, dict[str, Recipe]] | None:
    """arm -> scale -> recipe, the baseline included; None where one of them is no recipe."""
    found: dict[str, dict[str, Recipe]] = {}
    for variant in draft.variants:
        for scale in draft.sizes().values():
            recipe = validate(Recipe, draft.expanded(variant, scale))[0]
            if recipe is None:
                return None
            found.setdefault(variant.name, {})[scale.name] = recipe
    return found


def _free_name(kind: str, draft: Draft) -> str:
    taken = {variant.name for variant in draft.variants}
    names = (kind, *(f"{kind}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


# --- the A/A twin --------------------------------------------------------------------------------


def _twin(draft: Draft, recipes: Mapping[str, Mapping[str, Recipe]]) -> str | Mapping[str, Any]:
    """A declared control that is one already, or the change with the next free stream."""
    for arm in draft.arms:
        if arm.raw.get("role") == "control" and not arm.raw.get("against") and _is_twin(arm):
            return arm.name
    used = {recipe.model.init_stream for by_scale in recipes.values() for recipe in by_scale.values()}
    stream = next(number for number in range(1, len(used) + 2) if number not in used)
    return {"change": {"model": {"init_stream": stream}}}


def _is_twin(arm: Variant) -> bool:
    return not arm.raw.get("at") and list(_leaves(arm.change)) == STREAM


def _leaves(change: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in change.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


# --- the smaller dense model ---------------------------------------------------------------------


def _smaller(draft: Draft, recipes: Mapping[str, Mapping[str, Recipe]]) -> str | Mapping[str, Any] | Finding:
    """A declared control that is the same model, or the shape of the baseline's at each scale."""
    hypothesis = validate(Hypothesis, draft.data.get("hypothesis", {}))[0]
    if hypothesis is None:
        return {}  # it is wrong by itself, so nothing is made in the end
    references = _references(draft)
    shapes: dict[str, Mapping[str, int]] = {}
    for scale, baseline in recipes[draft.baseline.name].items():
        try:
            least = min(cost.training_flops(recipes[name][scale], 1.0) for name in references if name in recipes)
            shape = shrunk(baseline, (1 - hypothesis.saving.at_least) * least)
        except LookupError as error:
            return _impossible(scale, str(error).partition("\n")[0])
        if shape is None:
            return _impossible(scale, f"no shape of it costs at most {1 - hypothesis.saving.at_least:g} of its FLOPs")
        shapes[scale] = shape
    return _declared(draft, recipes, shapes) or {"at": shapes}


def _references(draft: Draft) -> set[str]:
    """What claims are held against."""
    return {draft.baseline.name} | {
        str(arm.raw["against"]) for arm in draft.arms if arm.raw.get("role") == "claim" and arm.raw.get("against")
    }


def _impossible(scale: str, why: str) -> Finding:
    message = f"no smaller model can be made of the baseline at scale `{scale}`: {why}"
    return Finding(("controls",), message, "name an arm of role control: `controls: {smaller: NAME}`", at_key=True)


def _declared(
    draft: Draft, recipes: Mapping[str, Mapping[str, Recipe]], shapes: Mapping[str, Mapping[str, int]]
) -> str | Finding | None:
    wanted = {scale: reshaped(recipes[draft.baseline.name][scale], shape) for scale, shape in shapes.items()}
    for arm in draft.arms:
        if recipes[arm.name] != wanted:
            continue
        if arm.raw.get("role") == "control" and not arm.raw.get("against"):
            return arm.name
        message = f"arm `{arm.name}` is the smaller dense model that a claim is held against"
        return Finding((*arm.path, "name"), message, "give it `role: control`, compared with the baseline")
    return None


def shrunk(recipe: Recipe, most_flops: float) -> dict[str, int] | None:
    """The shape that costs at most so many training FLOPs, and as nearly as its steps allow; None if there is none.

    The feed-forward gives first, down to half of its inner width; then whole heads go, and the inner width is what
    then fits. Where a head is too large a step, the heads get narrower instead.
    """
    found: dict[str, int] | None = None
    for narrower in (_fewer_heads(recipe.model), _narrower_heads(recipe.model)):
        shape = next((fit for width in narrower if (fit := _fitting(recipe, width, most_flops)) is not None), None)
        if shape is not None and (found is None or _flops(recipe, shape) > _flops(recipe, found)):
            found = shape
        if found is not None and _flops(recipe, found) >= NEAR * most_flops:
            break
    return found


def _fitting(recipe: Recipe, narrower: dict[str, int], most_flops: float) -> dict[str, int] | None:
    """A width with the largest inner width that the budget allows; None where not even the smallest is."""
    own = getattr(recipe.ffn, "hidden_for", None)
    if own is None:
        return narrower if narrower and _flops(recipe, narrower) <= most_flops else None
    hidden = own(recipe.model.width)
    step = HIDDEN_STEP if hidden >= 8 * HIDDEN_STEP else 1
    lowest = -(-max(1, int(LEAST_HIDDEN * hidden)) // step) * step
    sizes = range(lowest, (MOST_HIDDEN * hidden if narrower else hidden - 1) + 1, step)
    shapes = [narrower | {"hidden": size} for size in sizes]
    fitting = bisect_right(shapes, most_flops, key=lambda shape: _flops(recipe, shape))
    return shapes[fitting - 1] if fitting else None


def _flops(recipe: Recipe, shape: Mapping[str, int]) -> float:
    return cost.training_flops(reshaped(recipe, shape), 1.0)


def _fewer_heads(model: Model) -> Iterator[dict[str, int]]:
    """Nothing, then ever narrower models by whole heads, with the keys that they share."""
    yield {}
    group = model.heads // model.key_heads
    for heads in range(model.heads - group, 0, -group):
        keys = {} if model.kv_heads is None else {"kv_heads": heads // group}
        yield {"width": heads * model.head_width, "heads": heads, **keys}


def _narrower_heads(model: Model) -> Iterator[dict[str, int]]:
    """Ever narrower models by the width of a head: even, and as round as the baseline's width."""
    step = HIDDEN_STEP if model.width % HIDDEN_STEP == 0 else 1
    for head_width in range(model.head_width - 2, 0, -2):
        if model.heads * head_width % step == 0:
            yield {"width": model.heads * head_width}


def reshaped(recipe: Recipe, shape: Mapping[str, int]) -> Recipe:
    """The recipe with other numbers of its shape."""
    return Recipe.model_validate(merge(recipe.model_dump(mode="json"), placed(shape)))


# --- what is wrong -------------------------------------------------------------------------------


def _named_problems(draft: Draft) -> Iterator[Finding]:
    controls = {arm.name: arm for arm in draft.arms if arm.raw.get("role") == "control"}
    for kind in KINDS:
        name, path = value_of(draft.data, "controls", kind), ("controls", kind)
        if not isinstance(name, str):
            continue
        if name not in controls:
            hint = suggest(name, controls) or "give an arm `role: control`, or say `true` to have it made"
            yield Finding(path, f"no arm of role control is named {name!r}", hint)
        elif kind == "aa" and not _is_twin(controls[name]):
            message = f"arm `{name}` is no A/A control: it must change `model.init_stream` and nothing else"
            yield Finding(path, message, "`change: {model: {init_stream: 1}}`")
        elif kind == "smaller" and (problem := _other_budget(draft, name)):
            yield Finding(path, problem, "`controls: {smaller: true}` has one of the right size made")


def _other_budget(draft: Draft, name: str) -> str | None:
    """How a named smaller model misses the FLOPs that a claim may spend, at the first scale where it does."""
    hypothesis, recipes = validate(Hypothesis, draft.data.get("hypothesis", {}))[0], _recipes(draft)
    if hypothesis is None or recipes is None or not draft.has_scales:
        return None
    allowed = 1 - hypothesis.saving.at_least
    for scale, baseline in recipes[draft.baseline.name].items():
        own = recipes[name][scale]
        least = min(cost.training_flops(recipes[one][scale], 1.0) for one in _references(draft) if one in recipes)
        share = cost.training_flops(own, 1.0) / least
        if LEAST_NAMED * allowed <= share <= MOST_NAMED * allowed:
            continue
        shape = shrunk(baseline, allowed * least)
        if shape is None or own != reshaped(baseline, shape):  # steps too large to come nearer are no fault
            return (
                f"arm `{name}` spends {share:.1%} of its reference's training FLOPs at scale `{scale}`, and a smaller "
                f"model is held against a claim at {allowed:.1%}"
            )
    return None
