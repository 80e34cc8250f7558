"""Differences between recipes as plain data: merging one in, spelling it out in full, saying it in words.

A recipe mapping is built up in this order, the later winning: the technique that each seam has by default, the
baseline's `recipe`, the values of a scale, an arm's `change`, the arm's numbers `at` that scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from lmopt.quantities import human_count, is_bytes, written_bytes
from lmopt.recipe import Recipe

SCALE_PATHS: dict[str, tuple[str, ...]] = {
    "layers": ("model", "layers"),
    "width": ("model", "width"),
    "heads": ("model", "heads"),
    "kv_heads": ("model", "kv_heads"),
    "context": ("model", "context"),
    "hidden": ("ffn", "hidden"),
    "tokens": ("tokens",),
    "lr": ("optimizer", "lr"),
    "sequences": ("batching", "sequences"),
    "micro_sequences": ("batching", "micro_sequences"),
    "length": ("batching", "length"),
}
"""What a scale may set -> where it stands in a recipe."""
VOCAB_PATH = ("model", "vocab")
"""Set by the suite's tokenizer."""


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` merged in; neither is altered.

    Mappings merge key by key, but one that names another `kind` than the base's replaces it whole: the knobs of a
    technique mean nothing to another. Anything else, lists included, replaces.
    """
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not is_other_kind(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def is_other_kind(base: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether the change names a technique, and another one."""
    return "kind" in change and change["kind"] != base.get("kind")


def expand(
    baseline: Mapping[str, Any],
    scale: Mapping[str, Any],
    vocab: int,
    change: Mapping[str, Any],
    shape: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The recipe mapping of an arm at a scale, not validated yet."""
    merged = merge(default_kinds(), baseline)
    merged = merge(merged, placed(scale))
    merged = merge(merged, nested({VOCAB_PATH: vocab}))
    return merge(merge(merged, change), placed(shape))


def with_teacher(merged: dict[str, Any], expanded: Callable[[str], Mapping[str, Any] | None]) -> dict[str, Any]:
    """The recipe mapping with the shape of its teacher, where its objective names one.

    Args:
        expanded: the recipe mapping of an arm at the same scale; None where no arm has that name.
    """
    objective: Any = merged.get("objective")
    name = objective.get("teacher") if isinstance(objective, Mapping) else None
    teacher = expanded(name) if isinstance(name, str) else None
    if teacher is None:
        return merged
    try:
        found = Recipe.model_validate(without(teacher, [("objective",), ("start",)]))
    except ValidationError:
        return merged  # what is wrong with the teacher is said where it stands
    return {**merged, "objective": {**objective, "shape": found.model_dump(mode="json", include={"model", "ffn"})}}


def placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names that a scale gives them, where they stand in a recipe."""
    return nested({SCALE_PATHS[name]: values[name] for name in SCALE_PATHS if name in values})


def default_kinds() -> dict[str, Any]:
    """seam -> `{kind: ...}` of the technique that it has by default."""
    found: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        kind = getattr(field.default, "kind", None)
        if kind is not None:
            found[name] = {"kind": kind}
    return found


def nested(values: Mapping[Sequence[str], Any]) -> dict[str, Any]:
    """`{("model", "width"): 64}` -> `{"model": {"width": 64}}`."""
    root: dict[str, Any] = {}
    for path, value in values.items():
        here = root
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
    return root


def without(data: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The mapping without the values at these paths, and without mappings that this leaves empty."""
    kept: dict[str, Any] = {}
    for key, value in data.items():
        below = [path[1:] for path in paths if path[0] == key]
        if () in map(tuple, below):
            continue
        if below and isinstance(value, Mapping):
            value = without(value, below)
            if not value:
                continue
        kept[key] = value
    return kept


def spelled_out(change: Mapping[str, Any], base: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A change with its values as typed ones, and with every knob of a technique that it brings in.

    Args:
        change: as written.
        base: what it was merged into.
        result: the validated recipe, dumped.
    """
    spelled: dict[str, Any] = {}
    for key, value in change.items():
        old, new = base.get(key), result[key]
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not is_other_kind(old, value):
            spelled[key] = spelled_out(value, old, new)
        else:
            spelled[key] = new
    return spelled


# --- in words ------------------------------------------------------------------------------------


def in_words(reference: Recipe, recipe: Recipe) -> str:
    """How a recipe differs from its reference: `ffn: swiglu -> moe (experts 8, top_k 2); tokens: 1M -> 2M`.

    Of a technique's knobs those are named that are not at their defaults, those that it always shows, and those that
    it shares with the technique it replaces and has at another value.
    """
    return "; ".join(_differences(reference, recipe)) or "no change"


def _differences(before: BaseModel, after: BaseModel, prefix: str = "") -> Iterator[str]:
    for key in type(after).model_fields:
        old, new, name = getattr(before, key, None), getattr(after, key), f"{prefix}{key}"
        if old == new:
            continue
        if isinstance(old, BaseModel) and isinstance(new, BaseModel) and type(old) is type(new):
            yield from _differences(old, new, f"{name}.")
        elif isinstance(old, tuple) and isinstance(new, tuple) and set(map(repr, old)) & set(map(repr, new)):
            yield f"{name}: {_changed(old, new)}"
        else:
            # Null is each field's own: nothing where the default is something, else what is derived from other fields.
            null = "default" if type(after).model_fields[key].get_default() is None else "none"
            was, now = (
                null if one is None else _knob(type(after), key, one, other) for one, other in ((old, new), (new, old))
            )
            yield f"{name}: {was} -> {now}"


def _changed(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """`without exact_dedup + near_dedup, with lines`; the whole list where only the order differs."""
    gone, come = tuple(item for item in old if item not in new), tuple(item for item in new if item not in old)
    parts = [f"without {_words(gone)}" if gone else "", f"with {_words(come)}" if come else ""]
    return ", ".join(filter(None, parts)) or f"{_words(old)} -> {_words(new)}"


def _words(value: Any, beside: Any = None) -> str:
    if isinstance(value, BaseModel):
        told = (key for key in type(value).model_fields if _is_told(value, key) or _is_other(value, beside, key))
        knobs = [f"{key} {_knob(type(value), key, getattr(value, key))}" for key in told]
        kind = getattr(value, "kind", None)
        return " ".join(filter(None, (kind, f"({', '.join(knobs)})" if knobs else ""))) or "default"
    if isinstance(value, list | tuple):
        return " + ".join(_words(item) for item in value) or "none"
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and value >= 100_000:
        return human_count(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _knob(technique: type[BaseModel], key: str, knob: Any, beside: Any = None) -> str:
    """The value of one of a technique's knobs."""
    field = technique.model_fields[key]
    if knob is None:
        return "none"  # told only where the default is something: a rule that is switched off
    if isinstance(knob, int) and (is_bytes(field.annotation) or any(map(is_bytes, field.metadata))):
        return written_bytes(knob)
    return _words(knob, beside)


def _is_told(value: BaseModel, key: str) -> bool:
    knob, default = getattr(value, key), type(value).model_fields[key].get_default()
    if key == "kind" or key in getattr(value, "untold", ()):
        return False
    return knob != default or (knob is not None and key in getattr(value, "shown", ()))


def _is_other(value: BaseModel, beside: Any, key: str) -> bool:
    """Whether a knob that two techniques share stands at different values, both of them set."""
    knob, other = getattr(value, key), getattr(beside, key, None)
    return key != "kind" and knob is not None and other is not None and knob != other
