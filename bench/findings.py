"""What pydantic says about plain data, as paths into that data and sentences a person can act on."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.datapaths import (
    annotations_at,
    bounds_of,
    inside_of,
    is_model,
    keys_of,
    kinds_of,
    members_of,
    options_of,
    types_at,
    value_at,
)
from bench.design import NAME_PATTERN
from bench.problems import nearest, quoted, suggest
from bench.source import DataPath

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list",
    "list": "a list", "dict": "a mapping", "model": "a mapping", "model_attributes": "a mapping",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("gt", "greater than"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake at a path of the data."""

    path: DataPath
    message: str
    hint: str | None = None
    at_key: bool = False
    """The key is meant, not its value."""
    is_cross_field: bool = False
    """Several values do not go together; the path is that of the mapping which holds them."""


def validate(model: type[M], data: Any) -> tuple[M | None, list[Finding]]:
    """The typed value, or what is wrong with the data."""
    misplaced = list(_misplaced_booleans(model, data))
    value, refused = typed(model, data)
    # A boolean where a number belongs is reported once, as what it is, and not what would follow from it as a 1.
    known = {finding.path for finding in misplaced}
    found = [each for each in refused if each.path not in known and not (known and each.is_cross_field)]
    return None if misplaced else value, misplaced + found


def typed(model: type[M], data: Any, context: Any = None) -> tuple[M | None, list[Finding]]:
    """The value as pydantic reads it (`true` as 1), or what it refuses."""
    try:
        return model.model_validate(data, context=context), []
    except ValidationError as error:
        raised = [details for details in error.errors(include_url=False) if not _is_echo(details)]
        return None, [finding for details in raised for finding in _explained(model, details, data)]


def _is_echo(details: Any) -> bool:
    """A list that is long enough, but not once its wrong items are left out: those are reported by themselves."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


def named_values(finding: Finding) -> Iterator[DataPath]:
    """A cross-field message begins with the value it blames: `heads (3) must divide ...` -> that value, and others."""
    if finding.is_cross_field:
        for word in finding.message.replace("(", " ").replace(",", " ").split():
            parts = word.strip("`:;.").split(".")
            if all(part.isidentifier() for part in parts):
                yield (*finding.path, *parts)


# --- sentences -----------------------------------------------------------------------------------


def _explained(model: type[BaseModel], details: Any, data: Any) -> Iterator[Finding]:
    """An error as findings: several where values do not go together in several ways."""
    error = details.get("ctx", {}).get("error")
    for sentence in getattr(error, "sentences", (None,)):
        yield _explain(model, details, data, sentence)


def _explain(model: type[BaseModel], details: Any, data: Any, sentence: str | None) -> Finding:
    code: str = details["type"]
    loc: tuple[str | int, ...] = details["loc"]
    path = _data_path(loc, data, code)
    value, context = details["input"], details.get("ctx", {})
    if code == "extra_forbidden":
        return _unknown_key(model, path, data)
    if code == "missing":
        return _missing_key(model, path, str(loc[-1]), data)
    if code.startswith("union_tag"):
        return _wrong_kind(model, path, data, code)
    if code == "value_error":
        message, hint = split_hint(sentence or str(context.get("error", details["msg"])))
        return Finding(path, message, hint, is_cross_field=isinstance(value, Mapping))
    if code == "literal_error":
        allowed = [str(choice) for option in types_at(model, path, data) for choice in typing.get_args(option)]
        message = f"{quoted(value)} is not allowed here"
        return Finding(path, message, suggest(value, allowed) if isinstance(value, str) else _listed(allowed))
    if code == "string_pattern_mismatch" and context.get("pattern") == NAME_PATTERN:
        return _bad_name(path, value)
    if code in _BOUNDS:
        context = _tightest(_BOUNDS[code][0], context, annotations_at(model, path, data))
    return Finding(path, *_plain_sentence(code, value, context, details["msg"], types_at(model, path, data)))


def _tightest(name: str, context: Mapping[str, Any], annotations: Iterable[tuple[Any, Any]]) -> Mapping[str, Any]:
    """The bound of the field itself, where the value is beyond one of all such numbers first (`layers: 9e99`)."""
    tighter = {"le": min, "lt": min, "ge": max, "gt": max}[name]
    for chain in (bounds_of(name, part) for annotation, _ in annotations for part in members_of(annotation)):
        if context[name] in chain and tighter(chain) != context[name]:
            return {name: tighter(chain)}
    return context


def _plain_sentence(
    code: str, value: Any, context: Mapping[str, Any], fallback: str, options: Sequence[Any]
) -> tuple[str, str | None]:
    if code in _BOUNDS:
        name, words = _BOUNDS[code]
        return f"{quoted(value)} is out of bounds: it must be {words} {context[name]}", None
    base = code.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if base in _EXPECTED:
        unquoted = base == "string" and isinstance(value, int | float)
        hint = f'write it in quotes: "{quoted(value)}"' if unquoted else _kind_hint(value, options)
        return f"expected {_EXPECTED[base]}, got {quoted(value)}", hint
    if code == "too_short":
        return f"needs at least {_items(context['min_length'])}, got {context['actual_length']}", None
    if code == "too_long":
        return f"holds at most {_items(context['max_length'])}, got {context['actual_length']}", None
    if code in ("string_too_long", "string_too_short"):
        return f"{fallback.replace('String should have', 'text must have')}, got {len(value)}", None
    if code == "finite_number":
        return f"{quoted(value)} is not a finite number", None
    return f"{fallback[:1].lower()}{fallback[1:]}, got {quoted(value)}", None


def _kind_hint(value: Any, options: Sequence[Any]) -> str | None:
    """`ffn: moe` -> write it as a mapping."""
    known = [kind for option in options for kind in kinds_of(option)]
    if not isinstance(value, str) or not known:
        return None
    kind = value if value in known else nearest(value, known)
    return f"write `{{kind: {kind}}}`" if kind else f"write `{{kind: ...}}` with one of {', '.join(known)}"


def _unknown_key(model: type[BaseModel], path: DataPath, data: Any) -> Finding:
    key = str(path[-1])
    options = types_at(model, path[:-1], data)
    allowed = keys_of(options)
    hint = suggest(key, allowed)
    if nearest(key, allowed) is None:
        homes = [name for name, annotation in allowed.items() if key in keys_of(types_at(annotation, (), None))]
        if homes:
            hint = f"`{key}` belongs inside `{homes[0]}`"
    return Finding(path, f"unknown key {_code(key)}", hint, at_key=True)


def _missing_key(model: type[BaseModel], path: DataPath, key: str, data: Any) -> Finding:
    about: str | None = None
    for option in types_at(model, path, data):
        if is_model(option) and key in option.model_fields:
            about = option.model_fields[key].description
    hint = None if not about else " ".join(about.split("\n")[0].split()).rstrip(".")
    return Finding(path, f"missing key `{key}`", None if hint is None else f"`{key}`: {hint}")


def _wrong_kind(model: type[BaseModel], path: DataPath, data: Any, code: str) -> Finding:
    known = [kind for option in types_at(model, path, None) for kind in kinds_of(option)]
    value = value_at(data, path)
    if code == "union_tag_not_found":
        return Finding(path, "missing key `kind`", f"allowed: {', '.join(known)}")
    kind = value.get("kind") if isinstance(value, Mapping) else None
    hint = suggest(kind, known) if isinstance(kind, str) else _listed(known)
    return Finding((*path, "kind"), f"unknown kind {quoted(kind)}", hint)


def _bad_name(path: DataPath, value: str) -> Finding:
    better = re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("-._")[:64]
    message = f"{quoted(value)} is not a name: a-z, 0-9, `.`, `_`, `-`, at most 64, the first a letter or digit"
    return Finding(path, message, f"for example `{better}`" if better else None)


def _code(text: str) -> str:
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _items(count: int) -> str:
    return f"{count} item{'s' if count != 1 else ''}"


def _listed(allowed: Sequence[str]) -> str | None:
    return f"allowed: {', '.join(allowed)}" if allowed else None


def split_hint(text: str) -> tuple[str, str | None]:
    """`what is wrong; hint: what to do` -> both parts."""
    message, found, hint = re.sub(r"[\s.;]*\bhint:\s*", "\0", text, count=1).partition("\0")
    return " ".join(message.split()), hint.strip() if found else None


def _data_path(loc: Sequence[str | int], data: Any, code: str) -> DataPath:
    """pydantic's location without the parts that are no part of the data: tags of unions, names of validators."""
    path: list[str | int] = []
    here, tag_seen = data, False
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(here, Mapping):
            is_tag = not tag_seen and part == here.get("kind") and not (is_last and code == "extra_forbidden")
            if is_tag or part not in here:
                tag_seen = True
                continue
        elif not (isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)):
            continue
        path.append(part)
        here, tag_seen = value_at(here, (part,)), False
    return tuple(path)


def _misplaced_booleans(annotation: Any, data: Any, path: DataPath = ()) -> Iterator[Finding]:
    """`true` where a number belongs: pydantic would read it as 1."""
    if isinstance(data, bool):
        if not any(option is bool or option is Any or bool in map(type, typing.get_args(option)) for option in
                   options_of(annotation, data)):  # fmt: skip
            yield Finding(path, f"expected {_wanted(annotation)}, got {quoted(data)}")
        return
    parts: Iterator[tuple[Any, Any]]
    if isinstance(data, Mapping):
        parts = iter(data.items())
    elif isinstance(data, list | tuple):
        parts = iter(enumerate(data))
    else:
        return
    options = list(options_of(annotation, data))
    for part, value in parts:
        inner = [inside for option in options for inside in inside_of(option, part)]
        if inner:
            yield from _misplaced_booleans(typing.Union[tuple(inner)], value, (*path, part))  # noqa: UP007


def _wanted(annotation: Any) -> str:
    options = list(options_of(annotation, None))
    for kind, words in ((int, "a whole number"), (float, "a number"), (str, "text")):
        if kind in options:
            return words
    return "a list" if any(typing.get_origin(option) is tuple for option in options) else "a mapping"
