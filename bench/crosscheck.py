"""Rules that hold between the parts of a suite: names, references, axes, recipes, tasks, metrics, files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import ablation, batchcheck, controls, finetunecheck, infercheck, tunecheck
from bench.allowance import BudgetError, parse_budget
from bench.datapaths import has
from bench.draft import Draft, Variant, recipe_findings, value_of
from bench.evaluate import index as tasks
from bench.findings import Finding, split_hint, validate
from bench.merge import SCALE_PATHS, VOCAB_PATH
from bench.problems import suggest
from bench.source import DataPath
from bench.stanzas import Scale
from lmopt.recipe import Recipe, Upcycled
from lmopt.techniques.start import misfit


def crosscheck(data: Mapping[str, Any], *, look_at_files: bool = False) -> list[Finding]:
    """Everything that is wrong between the parts. Parts that are wrong by themselves are passed over.

    Args:
        data: the suite as plain data.
        look_at_files: also whether `file:` sources are there, and a checkpoint that is to generate.
    """
    draft = Draft.of(data)
    found = [
        *_names(draft), *_references(draft), *_axes(draft), *_numbers_in_one_place(draft), *recipe_findings(draft),
        *_differences(draft), *_shapes(draft), *controls.findings(draft), *_gate(draft), *_tasks(draft),
        *_budget(draft), *_planted(draft), *_starts(draft), *_teachers(draft), *batchcheck.memory(draft),
        *ablation.findings(draft),
        *tunecheck.findings(draft), *infercheck.findings(draft, look_at_files=look_at_files),
        *finetunecheck.findings(draft),
    ]  # fmt: skip
    return found + (list(_files(draft)) if look_at_files else [])


def _repeated(entries: Iterator[tuple[DataPath, Any]], what: str) -> Iterator[Finding]:
    seen: set[Any] = set()
    for path, value in entries:
        if isinstance(value, str | int | float):
            if value in seen:
                yield Finding(path, f"{what} {value!r} is given twice", "give each its own")
            seen.add(value)


def _numbers(entries: Iterator[tuple[DataPath, Any]]) -> Iterator[tuple[DataPath, float]]:
    """The items that are numbers, also those in quotes: 1, 1.0 and "1.0" are one."""
    for path, value in entries:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):
            yield path, number


def _items(data: Any, *path: str) -> Iterator[tuple[DataPath, Any]]:
    """(path, value) of each item of a list in the suite."""
    value = value_of(data, *path)
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield (*path, index), item


# --- names and references ------------------------------------------------------------------------


def _names(draft: Draft) -> Iterator[Finding]:
    named = (((*variant.path, "name"), variant.name) for variant in draft.variants)
    yield from _repeated(named, "name")
    scales = _items(draft.data, "over", "scale")
    yield from _repeated((((*path, "name"), value_of(item, "name")) for path, item in scales), "scale")


def _references(draft: Draft) -> Iterator[Finding]:
    known = {variant.name: variant for variant in draft.variants}
    for arm in draft.arms:
        against = arm.raw.get("against")
        path = (*arm.path, "against")
        if not isinstance(against, str):
            continue
        if against not in known:
            yield Finding(path, f"no arm is named {against!r}", suggest(against, [n for n in known if n != arm.name]))
        elif against == arm.name:
            yield Finding(path, f"arm `{arm.name}` is compared with itself", "leave `against` out for the baseline")
        elif (circle := _circle(arm, known)) is not None:
            yield Finding(path, f"`against` goes in a circle: {' -> '.join(circle)}", "let one of them be the baseline")
        elif known[against].raw.get("role") == "timing" and arm.raw.get("role") != "timing":
            hint = f"only a timing arm can be compared with `{against}`"
            yield Finding(path, f"`{against}` is a timing arm: it is never trained to the end", hint)


def _circle(arm: Variant, known: Mapping[str, Variant]) -> list[str] | None:
    """The names on the way from an arm back to itself."""
    way = [arm.name]
    while True:
        following = known[way[-1]].raw.get("against")
        if not isinstance(following, str) or following not in known:
            return None
        if following in way:
            return [*way, following] if following == arm.name else None
        way.append(following)


def _shapes(draft: Draft) -> Iterator[Finding]:
    scales = [value_of(item, "name") for _, item in _items(draft.data, "over", "scale")]
    for arm in draft.arms:
        shapes = arm.raw.get("at")
        for name in shapes if isinstance(shapes, Mapping) else ():
            if name not in scales:
                hint = suggest(str(name), [scale for scale in scales if isinstance(scale, str)])
                yield Finding((*arm.path, "at", name), f"no scale is named {name!r}", hint, at_key=True)


def _starts(draft: Draft) -> Iterator[Finding]:
    """An arm that starts from another's weights: the other is trained that far, stands before it, and fits."""
    horizons = {number for _, number in _numbers(_items(draft.data, "over", "horizon"))}
    names = [variant.name for variant in draft.variants]
    for arm in draft.arms:
        path = (*arm.path, "change", "start")
        if value_of(arm.change, "start", "kind") != "upcycled":
            continue
        against = arm.raw.get("against") or draft.baseline.name
        if against not in names or names.index(against) >= names.index(arm.name):
            yield Finding(path, f"starts from `{against}`, which must stand before `{arm.name}`", "move it up")
            continue
        source = draft.variants[names.index(against)]
        for scale in draft.scales.values():
            own, other = (validate(Recipe, draft.expanded(variant, scale))[0] for variant in (arm, source))
            if own is None or other is None or not isinstance(own.start, Upcycled):
                continue
            if horizons and own.start.horizon not in horizons:
                known = ", ".join(f"{horizon:g}" for horizon in sorted(horizons))
                yield Finding(
                    (*path, "horizon") if has(arm.change, ("start", "horizon")) else path,
                    f"`{against}` is not trained to horizon {own.start.horizon:g}",
                    f"over.horizon has {known}",
                )
                break
            reason = misfit(own, other)
            if reason:
                why, hint = split_hint(reason)
                yield Finding(path, f"cannot start from `{against}` at scale `{scale.name}`: {why}", hint)
                break


def _teachers(draft: Draft) -> Iterator[Finding]:
    """An arm that learns from another: the other is trained, and stands before it."""
    names = [variant.name for variant in draft.variants]
    trained = [variant.name for variant in draft.variants if variant.raw.get("role") != "timing"]
    for variant in draft.variants:
        here, said = draft.own_words(variant)
        teacher, path = value_of(said, "objective", "teacher"), (*here, "objective", "teacher")
        if not isinstance(teacher, str):
            continue
        if teacher not in names:
            yield Finding(path, f"no arm is named {teacher!r}", suggest(teacher, trained))
        elif teacher not in trained:
            message = f"`{teacher}` is a timing arm: it is never trained to the end"
            yield Finding(path, message, "give it `role: control`")
        elif names.index(teacher) >= names.index(variant.name):
            message = f"`{variant.name}` learns from `{teacher}`, which must stand before it"
            yield Finding(path, message, "a teacher is an arm above its students")


# --- axes ----------------------------------------------------------------------------------------


def _axes(draft: Draft) -> Iterator[Finding]:
    seeds = _numbers(_items(draft.data, "over", "seed"))
    yield from _repeated(((path, int(seed)) for path, seed in seeds), "seed")
    horizons = list(_numbers(_items(draft.data, "over", "horizon")))
    yield from _repeated(iter(horizons), "horizon")
    if horizons and 1.0 not in [horizon for _, horizon in horizons]:
        yield Finding(("over", "horizon"), "horizon 1.0 is missing: it is where quality is compared", "add 1.0")
    if len(draft.scales) > 1:
        yield from _uneven_scales(draft.scales)


def _uneven_scales(scales: Mapping[int, Scale]) -> Iterator[Finding]:
    for name in SCALE_PATHS:
        given = [scale.name for scale in scales.values() if name in scale.values()]
        for index, scale in scales.items():
            if given and scale.name not in given:
                message = f"scale `{scale.name}` leaves out `{name}`, which scale `{given[0]}` gives"
                yield Finding(("over", "scale", index, "name"), message, "give it for every scale or for none")


def _numbers_in_one_place(draft: Draft) -> Iterator[Finding]:
    """What a scale or the tokenizer sets may not be set by the baseline too: one would silently win."""
    by_scales = {name for scale in draft.scales.values() for name in scale.values()}
    for name, place in SCALE_PATHS.items():
        if name in by_scales and has(draft.recipe, place):
            message = f"`{'.'.join(place)}` is set by over.scale (`{name}`)"
            yield Finding(("baseline", "recipe", *place), message, "remove it here", at_key=True)
    for variant in draft.variants:
        here, said = draft.own_words(variant)
        if has(said, VOCAB_PATH) and not _is_filled_in(draft, said):
            message = "`model.vocab` is set by data.tokenizer.vocab"
            yield Finding((*here, *VOCAB_PATH), message, "remove it here", at_key=True)


def _is_filled_in(draft: Draft, said: Mapping[str, Any]) -> bool:
    return value_of(said, *VOCAB_PATH) in (None, draft.vocab)


def _differences(draft: Draft) -> Iterator[Finding]:
    """Every arm must be another run than the baseline and than every other arm, at every scale."""
    seen: dict[tuple[int, str], Variant] = {}
    for variant in draft.variants:
        like: dict[str, Variant] = {}
        for index, scale in draft.sizes().items():
            other = seen.setdefault((index, _identity(draft.expanded(variant, scale))), variant)
            if other is not variant:
                like[scale.name] = other
        if like:
            yield _likeness(draft, variant, like)


def _likeness(draft: Draft, variant: Variant, like: Mapping[str, Variant]) -> Finding:
    """An arm that is another one again: everywhere, or at the scales that `like` names with what it is there."""
    path = (*variant.path, "change" if variant.change else "name")
    other = next(iter(like.values()))
    same = [name for name, found in like.items() if found is other]
    where, hint = "", "remove one of them"
    if len(same) < len(draft.sizes()):
        scales = ", ".join(f"`{name}`" for name in same)
        where = f" at scale{'s' if len(same) > 1 else ''} {scales}"
        hint = "they may be told apart there by `at`, or in a suite without the scale"
    elif other.index is None:
        hint = "a placebo draws another initialisation: `change: {model: {init_stream: 1}}`"
    if other.index is None:
        message = f"arm `{variant.name}` changes nothing{where}: its recipe is the baseline's"
    else:
        message = f"arm `{variant.name}` is the same as arm `{other.name}`{where}"
    return Finding(path, message, hint, at_key=True)


def _identity(merged: Mapping[str, Any]) -> str:
    """Equal for equal runs: the recipe with its defaults, or the mapping as it is where it makes no recipe."""
    recipe = validate(Recipe, merged)[0]
    return repr(merged) if recipe is None else recipe.model_dump_json()


# --- things outside the suite --------------------------------------------------------------------


def _tasks(draft: Draft) -> Iterator[Finding]:
    for path, name in _items(draft.data, "evaluate", "tasks"):
        if isinstance(name, str):
            try:
                tasks.find(name)
            except tasks.UnknownTask as error:
                yield Finding(path, *split_hint(str(error)))
    yield from _repeated(_items(draft.data, "evaluate", "tasks"), "task")


def _gate(draft: Draft) -> Iterator[Finding]:
    from bench import metrics

    names = [variant.name for variant in draft.variants]
    names += [value_of(arm, "name") for _, arm in _items(value_of(draft.data, "inference"), "arms")]
    for path, rule in _items(draft.data, "gate"):
        if not isinstance(rule, Mapping):
            continue
        metric, arm = rule.get("metric"), rule.get("arm")
        if isinstance(metric, str):
            try:
                metrics.find(metric)
            except metrics.UnknownMetric as error:
                yield Finding((*path, "metric"), *split_hint(str(error)))
        if isinstance(arm, str) and arm not in names:
            yield Finding((*path, "arm"), f"no arm is named {arm!r}", suggest(arm, names))


def _budget(draft: Draft) -> Iterator[Finding]:
    budget = draft.data.get("budget")
    if isinstance(budget, str):
        try:
            parse_budget(budget)
        except BudgetError as error:
            yield Finding(("budget",), *split_hint(str(error)))


def _planted(draft: Draft) -> Iterator[Finding]:
    """A planted effect is for self-tests: in any other study it would be a strawman."""
    if draft.data.get("purpose") == "selftest":
        return
    for variant in draft.variants:
        here, said = draft.own_words(variant)
        if value_of(said, "ffn", "kind") == "wasteful":
            message = "`wasteful` does work for nothing, to plant an effect that is known"
            yield Finding((*here, "ffn", "kind"), message, "only a suite of `purpose: selftest` may use it")


def _files(draft: Draft) -> Iterator[Finding]:
    for stanza in ("corpus", "validation"):
        for path, item in _items(draft.data, "data", stanza):
            text = item.get("source") if isinstance(item, Mapping) else item
            if not isinstance(text, str) or not text.startswith("file:"):
                continue
            place = (*path, "source") if isinstance(item, Mapping) else path
            yield from _missing(place, text.removeprefix("file:"))
    inherited = value_of(draft.recipe, "batching", "replay")
    for variant in draft.variants:
        here, said = draft.own_words(variant)
        replay = value_of(said, "batching", "replay")
        if isinstance(replay, str):
            place = (*here, "batching", "replay")
            missing = list(_missing(place, replay, folder=False))
            yield from missing or batchcheck.foreign(place, draft, variant)
        elif isinstance(inherited, str) and isinstance(value_of(said, "batching"), Mapping):
            place = (*here, "batching")
            if not list(_missing(place, inherited, folder=False)):  # said of the baseline
                yield from batchcheck.foreign(place, draft, variant)


def _missing(place: DataPath, file: str, *, folder: bool = True) -> Iterator[Finding]:
    path = _existing(file)
    if path is None:
        hint = f"a relative path starts at the folder that you are in, {Path.cwd()}"
        yield Finding(place, f"no such file: {file!r}", hint)
    elif path.is_dir():
        if not folder:
            yield Finding(place, f"a folder, not a file: {file!r}", "name the file of decisions in it")
    elif not path.is_file():
        hint = "write what it gives to a file, and name that: every case reads it anew"
        yield Finding(place, f"neither a file nor a folder, but a pipe or a device: {file!r}", hint)


def _existing(file: str) -> Path | None:
    try:
        path = Path(file).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown ~user, a null character
        return None
