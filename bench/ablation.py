"""A combined change taken apart: its factors, and the arms that an ablation design makes of them.

A *factor* is a data step that the arm adds or a part of the recipe (a seam) that it changes, or a named group of
those. Every arm of a design is the baseline with a set of factors on; a set that a declared arm already is needs no
new arm. Made arms are written into the resolved suite, so that everything after it sees arms like any other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bench.design import NAME_PATTERN, AblationDesign
from bench.draft import Draft, Variant
from bench.findings import Finding, validate
from bench.merge import in_words
from bench.problems import suggest
from bench.source import DataPath
from bench.stanzas import MAX_ARMS, Ablation
from bench.stats.fractions import MAX_FACTORS, Fraction, fraction, full
from lmopt.recipe import Recipe

HERE: DataPath = ("ablation",)
Parts = frozenset[str]
"""Names of factors that are on."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What an arm changes, by factor."""

    groups: Mapping[str, tuple[str, ...]]
    """factor -> the single changes in it (names of data steps and of techniques or seams)."""
    seams: Mapping[str, str]
    """single change -> the part of the recipe that it sets."""
    change: Mapping[str, Any]
    """The whole arm's change."""
    steps: tuple[tuple[str | None, Any], ...]
    """The whole arm's data steps, each with the single change it is; None where the baseline has it too."""

    def on(self, parts: Parts) -> dict[str, Any]:
        """The change of an arm with only these factors on."""
        single = {name for part in parts for name in self.groups[part]}
        change = {seam: self.change[seam] for name, seam in self.seams.items() if name in single}
        if any(name in single for name, _ in self.steps):
            change["data"] = [step for name, step in self.steps if name is None or name in single]
        return change


@dataclass(frozen=True, slots=True)
class Dissection:
    """The arms of a design."""

    stanza: Ablation
    factors: Factors
    cells: Mapping[str, Parts]
    """arm (baseline and whole included) -> factors that are on."""
    made: tuple[Mapping[str, Any], ...]
    """Arms that the suite does not declare, as plain data."""
    fraction: Fraction | None
    """The factorial part, if there is one."""


def dissect(draft: Draft) -> Dissection | list[Finding]:
    """The arms of a suite's ablation, or everything that is wrong with it."""
    stanza = validate(Ablation, draft.data.get("ablation"))[0]
    if stanza is None:
        return []  # what is wrong with the stanza by itself is said where it stands
    whole = next((arm for arm in draft.arms if arm.name == stanza.of), None)
    wrong = list(_whole_problems(draft, stanza, whole))
    if wrong or whole is None:
        return wrong
    single = _single_changes(draft, whole)
    if single is None:
        return []  # the arm itself is wrong
    wrong = list(_group_problems(stanza, single))
    if wrong:
        return wrong
    factors = _grouped(single, stanza.factors)
    names = tuple(factors.groups)
    if len(names) < 2:
        listing = f" (`{names[0]}`)" if names else ""
        return [Finding((*HERE, "of"), f"arm `{whole.name}` has {len(names)} factor{listing}: it cannot be taken apart",
                        "choose an arm with two changes or more, or split `factors`")]  # fmt: skip
    part = None
    if "factorial" in stanza.design:
        part = full(len(names)) if stanza.resolution == "full" else fraction(len(names), stanza.resolution)
        wrong = list(_factorial_problems(draft, part, len(names)))
        if wrong or part is None:
            return wrong
    return _arms(draft, stanza, factors, part)


def with_arms(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The suite with the arms that its ablation makes written out; as it is where that cannot be done."""
    if not isinstance(data.get("ablation"), Mapping):
        return data
    found = dissect(Draft.of(data))
    return data if isinstance(found, list) else {**data, "arms": [*data["arms"], *found.made]}


def findings(draft: Draft) -> list[Finding]:
    """What is wrong with a suite's ablation."""
    if not isinstance(draft.data.get("ablation"), Mapping):
        return []
    found = dissect(draft)
    return found if isinstance(found, list) else []


def design_of(draft: Draft) -> AblationDesign | None:
    """What judging needs of a valid suite's ablation."""
    found = dissect(draft) if isinstance(draft.data.get("ablation"), Mapping) else []
    if isinstance(found, list):
        return None
    scale = next(iter(draft.scales.values()))
    base = Recipe.model_validate(draft.expanded(draft.baseline, scale))
    names = tuple(found.factors.groups)
    alone = {name: _variant(name, found.factors.on(Parts({name}))) for name in names}
    words = {
        name: in_words(base, Recipe.model_validate(draft.expanded(variant, scale))) for name, variant in alone.items()
    }
    return AblationDesign(
        of=found.stanza.of, designs=found.stanza.design, factors=words,
        cells={arm: tuple(name for name in names if name in parts) for arm, parts in found.cells.items()},
        generators=None if found.fraction is None else found.fraction.generators,
    )  # fmt: skip


# --- factors -------------------------------------------------------------------------------------


def _single_changes(draft: Draft, whole: Variant) -> Factors | None:
    """Each change of an arm by itself; None where the arm or the baseline makes no recipe."""
    changed: dict[str, str] = {}
    steps: tuple[tuple[str | None, Any], ...] = ()
    for scale in draft.sizes().values():
        both = [validate(Recipe, draft.expanded(variant, scale))[0] for variant in (draft.baseline, whole)]
        if both[0] is None or both[1] is None:
            return None
        before, after = (recipe.model_dump(mode="json") for recipe in both if recipe is not None)
        for seam in whole.change:
            if before[seam] != after[seam]:
                other = isinstance(after[seam], Mapping) and after[seam].get("kind") != before[seam].get("kind")
                changed[seam] = str(after[seam]["kind"]) if other else seam
        steps = _added(before["data"], after["data"])
    if steps:
        changed.pop("data", None)
    names = [name for name, _ in steps if name is not None] + list(changed.values())
    seams = {name: seam for seam, name in changed.items()}
    return Factors({name: (name,) for name in names}, seams, whole.change, steps)


def _added(before: Sequence[Any], after: Sequence[Any]) -> tuple[tuple[str | None, Any], ...]:
    """The steps of a list that adds to another, each new one with a name; empty where it does something else."""
    left, found = list(before), []
    seen: dict[str, int] = {}
    for step in after:
        if left and step == left[0]:
            left.pop(0)
            found.append((None, step))
            continue
        kind = str(step["kind"])
        seen[kind] = seen.get(kind, 0) + 1
        found.append((kind if seen[kind] == 1 else f"{kind}-{seen[kind]}", step))
    return () if left or before == after else tuple(found)


def _grouped(single: Factors, groups: Mapping[str, Sequence[str]]) -> Factors:
    """Factors as the suite groups them; what no group names is a factor of its own."""
    home = {name: group for group, names in groups.items() for name in names}
    found: dict[str, tuple[str, ...]] = {}
    for name in single.groups:
        group = home.get(name, name)
        found[group] = (*found.get(group, ()), name)
    return Factors(found, single.seams, single.change, single.steps)


# --- arms ----------------------------------------------------------------------------------------


def _arms(draft: Draft, stanza: Ablation, factors: Factors, part: Fraction | None) -> Dissection | list[Finding]:
    names = tuple(factors.groups)
    declared = {_identity(draft, variant): variant.name for variant in draft.variants}
    taken = {variant.name for variant in draft.variants}
    cells: dict[str, Parts] = {draft.baseline.name: Parts(), stanza.of: Parts(names)}
    made: list[Mapping[str, Any]] = []
    wrong: list[Finding] = []
    for parts in _sets(names, stanza, part):
        variant = _variant(_name(names, parts), factors.on(parts))
        known = declared.get(_identity(draft, variant))
        if known is not None:
            cells[known] = parts
            continue
        wrong += _arm_problems(draft, variant, taken)
        cells[variant.name] = parts
        made.append({"name": variant.name, "role": "component", "timed": stanza.timed, "change": variant.change})
    if len(draft.arms) + len(made) > MAX_ARMS:
        message = f"the design makes {len(made)} arms; with those declared a suite holds at most {MAX_ARMS}"
        wrong.append(Finding((*HERE, "design"), message, "lower `resolution`, or put changes together in `factors`"))
    return wrong or Dissection(stanza, factors, cells, tuple(made), part)


def _sets(names: Sequence[str], stanza: Ablation, part: Fraction | None) -> Iterator[Parts]:
    """Each set of factors that the designs ask for, once; neither the baseline nor the whole."""
    wanted: list[Parts] = []
    if "add_one" in stanza.design:
        wanted += [Parts({name}) for name in names]
    if "leave_one_out" in stanza.design:
        wanted += [Parts(names) - {name} for name in names]
    if part is not None:
        wanted += [Parts(names[factor] for factor in run) for run in part.runs]
    yield from (parts for parts in dict.fromkeys(wanted) if 0 < len(parts) < len(names))


def _name(names: Sequence[str], parts: Parts) -> str:
    """`only-moe`, `without-moe`, `with-clean-moe`."""
    if len(parts) == 1:
        return f"only-{next(iter(parts))}"
    if len(parts) == len(names) - 1:
        return f"without-{next(name for name in names if name not in parts)}"
    return "-".join(["with", *(name for name in names if name in parts)])


def _variant(name: str, change: Mapping[str, Any]) -> Variant:
    return Variant(None, name, change, {})


def _identity(draft: Draft, variant: Variant) -> tuple[str, ...]:
    """Equal for equal runs at every scale."""
    recipes = [validate(Recipe, draft.expanded(variant, scale))[0] for scale in draft.sizes().values()]
    return tuple(variant.name if recipe is None else recipe.model_dump_json() for recipe in recipes)


# --- what is wrong -------------------------------------------------------------------------------


def _whole_problems(draft: Draft, stanza: Ablation, whole: Variant | None) -> Iterator[Finding]:
    place = (*HERE, "of")
    if whole is None:
        yield Finding(place, f"no arm is named {stanza.of!r}", suggest(stanza.of, [arm.name for arm in draft.arms]))
    elif whole.raw.get("role") == "timing":
        yield Finding(place, f"`{stanza.of}` is a timing arm: it is never trained to the end", "give it another role")
    elif whole.raw.get("at"):
        message = f"`{stanza.of}` has another shape at some scales (`at`), which is no factor of its change"
        yield Finding(place, message, "leave `at` out of that arm")
    elif whole.raw.get("against") is not None:
        message = f"`{stanza.of}` is compared with `{whole.raw['against']}`; an ablation starts from the baseline"
        yield Finding(place, message, "leave `against` out of that arm")


def _group_problems(stanza: Ablation, single: Factors) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for group, names in stanza.factors.items():
        place = (*HERE, "factors", group)
        if group in single.groups and group not in names:
            message = f"`{group}` is the name of a change that this group does not hold"
            yield Finding(place, message, "name it otherwise", at_key=True)
        for index, name in enumerate(names):
            if name not in single.groups:
                message = f"arm `{stanza.of}` has no change {name!r}"
                yield Finding((*place, index), message, suggest(name, single.groups))
            elif name in seen:
                yield Finding((*place, index), f"{name!r} is in group `{seen[name]}` already", "name it once")
            seen.setdefault(name, group)


def _factorial_problems(draft: Draft, part: Fraction | None, factors: int) -> Iterator[Finding]:
    if part is None:
        message = f"{factors} factors: fractions are tabulated for up to {MAX_FACTORS}"
        yield Finding((*HERE, "resolution"), message, "put changes together in `factors`")
    over = draft.data.get("over")
    seeds = over.get("seed") if isinstance(over, Mapping) else None
    if isinstance(seeds, list | tuple) and len(seeds) < 2:
        yield Finding(("over", "seed"), "a factorial needs two seeds or more: they are its blocks", "add a seed")


def _arm_problems(draft: Draft, variant: Variant, taken: set[str]) -> Iterator[Finding]:
    if variant.name in taken:
        message = f"the design makes an arm `{variant.name}`, and the suite has another of that name"
        yield Finding(HERE, message, "rename the one in the suite", at_key=True)
    if not re.match(NAME_PATTERN, variant.name):
        message = f"the design makes an arm `{variant.name}`, whose name is too long"
        yield Finding(HERE, message, "give shorter names in `factors`", at_key=True)
    said: set[str] = set()
    for scale in draft.sizes().values():
        try:
            Recipe.model_validate(draft.expanded(variant, scale))
        except ValidationError as error:
            found = (
                (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()
            )
            said |= {f"{place} {message}".strip() for place, message in found}
    for message in itertools.islice(said, 1):
        text = f"the design makes an arm `{variant.name}` that is impossible: {message}"
        yield Finding(HERE, text, "put changes that need each other together in `factors`", at_key=True)
