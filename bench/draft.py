"""A suite as far as it can be understood: enough to expand its cases even while other parts of it are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from bench.concealed import concealed
from bench.datapaths import has, value_at
from bench.findings import Finding, named_values, validate
from bench.merge import SCALE_PATHS, expand, is_other_kind, merge, nested, spelled_out, with_teacher, without
from bench.source import DataPath
from bench.stanzas import MAX_ARMS, MAX_SCALES, Baseline, Scale, Shape
from lmopt.data.spec import Bpe, Data
from lmopt.recipe import Recipe

_STAND_IN = Scale(name="s", layers=1, width=64, heads=1, tokens=10**12)
"""Expands the arms of a suite whose scales are all wrong, so that mistakes in the arms are shown too."""
_VALID = (
    Scale(name="s", layers=8, width=64, heads=1, kv_heads=1, context=2048, hidden=64, tokens=10**12, lr=1e-3,
          sequences=1, micro_sequences=1, length=2),
    Scale(name="s", layers=9, width=256, heads=2, kv_heads=2, context=4096, hidden=128, tokens=10**13, lr=2e-3,
          sequences=2, micro_sequences=2, length=4),
)  # fmt: skip
"""Each value of a scale, two times and never the same: what is wrong with both in its place does not follow from it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The baseline (`index` None) or an arm, as written."""

    index: int | None
    name: str
    change: Mapping[str, Any]
    raw: Mapping[str, Any]

    @property
    def path(self) -> DataPath:
        """Where it stands in the suite."""
        return ("baseline",) if self.index is None else ("arms", self.index)

    def shape(self, scale: str) -> Mapping[str, Any]:
        """What it sets at a scale alone; nothing where that is wrong by itself."""
        shape = validate(Shape, _mapping(self.raw.get("at")).get(scale, {}))[0] if self.index is not None else None
        return shape.values() if shape is not None else {}

    @property
    def label(self) -> str:
        """For sentences."""
        return f"baseline `{self.name}`" if self.index is None else f"arm `{self.name}`"


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything of a suite that expansion needs."""

    data: Mapping[str, Any]
    """The whole suite, as written."""
    baseline: Variant
    recipe: Mapping[str, Any]
    """The baseline's recipe, as written."""
    arms: tuple[Variant, ...]
    scales: Mapping[int, Scale]
    """Position -> scale, the valid ones."""
    mended: Mapping[int, tuple[Scale, Scale]]
    """Position -> an invalid scale with other values in place of the wrong ones, and with others again."""
    vocab: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Draft:
        """Whatever is a mapping where one belongs; the rest is left to the typed suite to refuse."""
        baseline = _mapping(data.get("baseline"))
        name = baseline.get("name", Baseline.model_fields["name"].default)
        raw_arms = _listed(data.get("arms"))[:MAX_ARMS]
        raw_scales = _listed(_mapping(data.get("over")).get("scale"))[:MAX_SCALES]
        scales = {index: scale for index, raw in enumerate(raw_scales) if (scale := validate(Scale, raw)[0])}
        return cls(
            data=data,
            baseline=Variant(None, str(name), {}, baseline),
            recipe=_mapping(baseline.get("recipe")),
            arms=tuple(_variants(raw_arms)),
            scales=scales,
            mended={
                index: pair
                for index, raw in enumerate(raw_scales)
                if index not in scales and (pair := _mended(raw, index))
            },
            vocab=_vocab(data.get("data")),
        )

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The baseline, then the arms."""
        return (self.baseline, *self.arms)

    def own_words(self, variant: Variant) -> tuple[DataPath, Mapping[str, Any]]:
        """Where a variant says what its recipe is, and what it says: the baseline all of it, an arm what it changes."""
        if variant.index is None:
            return (*variant.path, "recipe"), self.recipe
        return (*variant.path, "change"), variant.change

    @property
    def has_scales(self) -> bool:
        """Whether any scale can be expanded."""
        return bool(self.scales)

    def expanded(self, variant: Variant, scale: Scale) -> dict[str, Any]:
        """The recipe mapping of a variant at a scale."""

        def alone(one: Variant) -> dict[str, Any]:
            return expand(self.recipe, scale.values(), self.vocab, one.change, one.shape(scale.name))

        known = {one.name: one for one in self.variants}
        return with_teacher(alone(variant), lambda name: alone(known[name]) if name in known else None)

    def sizes(self) -> Mapping[int, Scale]:
        """The scales, or a stand-in where none is valid."""
        return self.scales or {-1: _STAND_IN}


def _mended(raw: Any, index: int) -> tuple[Scale, Scale] | None:
    """The scale with each of two values wherever its own is wrong or missing; None where it is no mapping.

    A key that nothing knows may be any misspelled: then every value that is not given is missing.
    """
    if not isinstance(raw, Mapping):
        return None
    wrong = {finding.path[0] for finding in validate(Scale, raw)[1] if finding.path}
    known = {name: value for name, value in raw.items() if name in Scale.model_fields and name not in wrong}
    missing = {
        name for name, field in Scale.model_fields.items()
        if name in wrong or (name not in known and (field.is_required() or wrong - set(Scale.model_fields)))
    }  # fmt: skip
    first, second = (
        Scale.model_validate({**known, **{name: getattr(valid, name) for name in missing}}) for valid in _VALID
    )
    name = {"name": str(raw.get("name", f"number {index + 1}"))}
    return first.model_copy(update=name), second.model_copy(update=name)


def _variants(raw_arms: list[Any]) -> Iterator[Variant]:
    for index, raw in enumerate(raw_arms):
        if isinstance(raw, Mapping):
            yield Variant(index, str(raw.get("name", f"number {index + 1}")), _mapping(raw.get("change")), raw)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _vocab(data: Any) -> int:
    try:
        return Data.model_validate(data).tokenizer.vocab
    except ValidationError:
        return Bpe().vocab


# --- recipes -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Met:
    """A finding with every place of the study that it was met at."""

    finding: Finding
    who: dict[str, list[str]]
    """label of a variant -> names of scales."""


def recipe_findings(draft: Draft) -> Iterator[Finding]:
    """What is wrong with the recipes that the suite expands to, at the place that is to blame."""
    met: dict[tuple[DataPath, str], _Met] = {}
    draft = replace(draft, scales={**draft.scales, **{index: pair[0] for index, pair in draft.mended.items()}})
    for index, scale in draft.sizes().items():
        of_baseline: set[tuple[DataPath, str]] = set()
        for variant in draft.variants:
            found, *others = (_wrong_with(draft.expanded(variant, one)) for one in draft.mended.get(index, (scale,)))
            for finding in found:
                if not all(finding in other for other in others):
                    continue
                key = (finding.path, finding.message)
                if variant.index is None:
                    of_baseline.add(key)
                elif key in of_baseline:
                    continue
                if finding.is_cross_field and not draft.has_scales:
                    continue
                placed = _placed(draft, variant, index, finding)
                known = met.setdefault((placed.path, placed.message), _Met(placed, {}))
                known.who.setdefault(variant.label, []).append(scale.name)
    for known in met.values():
        yield _with_axes(known) if known.finding.is_cross_field else known.finding


def _wrong_with(recipe: Mapping[str, Any]) -> list[Finding]:
    found = validate(Recipe, recipe)[1]
    return found + concealed(Recipe, recipe, found)


def _with_axes(met: _Met) -> Finding:
    """`... (arm `moe` at scale `s`)`."""
    places = [
        f"{label} at scale{'s' if len(scales) > 1 else ''} {', '.join(f'`{scale}`' for scale in scales)}"
        for label, scales in met.who.items()
    ]
    shown = "; ".join(places[:3]) + (f"; and {len(places) - 3} more" if len(places) > 3 else "")
    finding = met.finding
    return Finding(finding.path, f"{finding.message} ({shown})", finding.hint, finding.at_key)


def _placed(draft: Draft, variant: Variant, scale_index: int, finding: Finding) -> Finding:
    """The finding at the place in the suite that set the value: the arm's change, the scale or the baseline."""
    for path in (*named_values(finding), finding.path):
        place = _place(draft, variant, scale_index, path)
        if place is not None:
            return _moved(finding, place)
        lost = _lost(draft, variant, scale_index, path)
        if lost is not None:
            return _moved(replace(finding, hint=finding.hint or lost), (*variant.path, "change", path[0], "kind"))
    if variant.index is None and finding.is_cross_field and scale_index in draft.scales:
        return _moved(finding, ("over", "scale", scale_index, "name"))
    return _moved(finding, (*variant.path, "name"))


def _lost(draft: Draft, variant: Variant, scale_index: int, path: DataPath) -> str | None:
    """What to do where a change names another kind and so leaves a knob of the baseline's behind; None elsewhere."""
    scale = draft.sizes().get(scale_index)
    if scale is None or len(path) != 2:
        return None
    old = _mapping(draft.expanded(draft.baseline, scale).get(str(path[0])))
    new = _mapping(variant.change.get(str(path[0])))
    knob = str(path[1])
    if not is_other_kind(old, new) or knob not in old or knob in new:
        return None
    return f"another `kind` starts from its own defaults: repeat `{knob}: {old[knob]}`"


def _moved(finding: Finding, path: DataPath) -> Finding:
    is_cross = finding.is_cross_field
    return Finding(path, finding.message, finding.hint, finding.at_key and not is_cross, is_cross)


def _place(draft: Draft, variant: Variant, scale_index: int, path: DataPath) -> DataPath | None:
    if not path:
        return None
    if scale_index in draft.scales:
        scale = draft.scales[scale_index].name
        for name in variant.shape(scale):
            if SCALE_PATHS[name] == path:
                return (*variant.path, "at", scale, name)
    if has(variant.change, path):
        return (*variant.path, "change", *path)
    if variant.index is not None:
        return None
    for name, place in SCALE_PATHS.items():
        if place == path and scale_index in draft.scales and name in draft.scales[scale_index].values():
            return ("over", "scale", scale_index, name)
    return ("baseline", "recipe", *path) if has(draft.recipe, path) else None


# --- the canonical form --------------------------------------------------------------------------


def canonical(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The suite with its recipes spelled out: typed values, and every default filled in.

    Two suites that mean the same are then equal. A suite that cannot be expanded is returned as it is.
    """
    draft = Draft.of(data)
    if not draft.scales or not isinstance(data.get("baseline"), Mapping):
        return data
    scale = next(iter(draft.scales.values()))
    recipes = [validate(Recipe, draft.expanded(variant, scale))[0] for variant in draft.variants]
    if any(recipe is None for recipe in recipes):
        return data
    dumps = [recipe.model_dump(mode="json") for recipe in recipes if recipe is not None]
    dumps = [without(dump, [("objective", "shape")]) for dump in dumps]  # it follows from the teacher, at every scale
    set_elsewhere = [SCALE_PATHS[name] for name in scale.values()] + [("model", "vocab")]
    baseline = {**data["baseline"], "recipe": without(dumps[0], set_elsewhere)}
    base = draft.expanded(draft.baseline, scale)
    arms = list(_listed(data.get("arms")))
    for variant, dump in zip(draft.arms, dumps[1:], strict=True):
        assert variant.index is not None
        arms[variant.index] = {**variant.raw, "change": _of_every_scale(variant, scale.name, base, dump)}
    return {**data, "baseline": baseline, "arms": arms}


def _of_every_scale(
    variant: Variant, scale: str, base: Mapping[str, Any], dump: Mapping[str, Any]
) -> Mapping[str, Any]:
    """An arm's change spelled out at a scale, without what holds at that scale alone (`at`)."""
    spelled = spelled_out(variant.change, base, dump)
    for path in (SCALE_PATHS[name] for name in variant.shape(scale)):
        spelled = without(spelled, [path])
        if has(variant.change, path):
            spelled = merge(spelled, nested({path: value_at(variant.change, path)}))
    return spelled


def value_of(data: Mapping[str, Any], *path: str) -> Any:
    """A value of the suite as written; None where it is not given."""
    return value_at(data, path) if has(data, path) else None
