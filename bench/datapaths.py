"""Paths into plain data: the value that stands there, and the types that a model allows there with their bounds."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def value_at(data: Any, path: Sequence[str | int]) -> Any:
    """The value at a path.

    Raises:
        LookupError: there is none.
    """
    here: Any = data
    for part in path:
        if not isinstance(here, Mapping) and not (isinstance(here, list | tuple) and isinstance(part, int)):
            raise LookupError(path)
        here = cast(Any, here)[part]
    return here


def has(data: Any, path: Sequence[str | int]) -> bool:
    """Whether a path leads anywhere."""
    try:
        value_at(data, path)
    except LookupError:
        return False
    return True


def types_at(annotation: Any, path: Sequence[str | int], data: Any) -> list[Any]:
    """The alternatives that an annotation allows at a path of the data; a union is narrowed by `kind`."""
    return [option for inner, value in annotations_at(annotation, path, data) for option in options_of(inner, value)]


def annotations_at(annotation: Any, path: Sequence[str | int], data: Any) -> Iterator[tuple[Any, Any]]:
    """Annotations as they were written, with their bounds, and the value that the data holds there."""
    if not path:
        yield annotation, data
        return
    part, rest = path[0], path[1:]
    child = value_at(data, (part,)) if has(data, (part,)) else None
    for option in options_of(annotation, data):
        for inner in inside_of(option, part):
            yield from annotations_at(inner, rest, child)


def options_of(annotation: Any, data: Any) -> Iterator[Any]:
    """The alternatives of an annotation, bare; of a union of kinds only that which the data names, if it names one."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from options_of(typing.get_args(annotation)[0], data)
    elif origin in (typing.Union, types.UnionType):
        kind = data.get("kind") if isinstance(data, Mapping) else None
        options = [option for member in typing.get_args(annotation) for option in options_of(member, None)]
        same = [option for option in options if kind is not None and kind in kinds_of(option)]
        yield from same or options
    else:
        yield annotation


def inside_of(option: Any, part: str | int) -> Iterator[Any]:
    """Annotations of what stands at a key or a place inside of one alternative."""
    arguments = typing.get_args(option)
    if isinstance(part, str) and is_model(option):
        for name, field in option.model_fields.items():
            if part in (name, field.alias):
                yield typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    elif isinstance(part, int) and typing.get_origin(option) in (tuple, list) and arguments:
        yield arguments[0] if arguments[-1] is Ellipsis or part >= len(arguments) else arguments[part]
    elif isinstance(part, str) and typing.get_origin(option) is dict:
        yield arguments[1]


def is_model(option: Any) -> bool:
    """Whether an alternative is a typed mapping."""
    return isinstance(option, type) and issubclass(option, BaseModel)


def kinds_of(option: Any) -> tuple[str, ...]:
    """The `kind` that tells a model from the others of its union; empty where it has none."""
    field = option.model_fields.get("kind") if is_model(option) else None
    kinds = () if field is None else typing.get_args(field.annotation)
    return kinds if len(kinds) == 1 and isinstance(kinds[0], str) else ()


def keys_of(options: Sequence[Any]) -> dict[str, Any]:
    """Allowed keys -> their annotation."""
    return {
        field.alias or name: field.annotation
        for option in options
        if is_model(option)
        for name, field in option.model_fields.items()
    }


def members_of(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, each with what it is annotated with."""
    base = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        for member in typing.get_args(base):
            yield from members_of(member)
    else:
        yield annotation


def bounds_of(name: str, annotation: Any) -> list[Any]:
    """Every bound of this kind on one annotation."""
    noted = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
    flat = [part for note in noted for part in (note.metadata if isinstance(note, FieldInfo) else (note,))]
    return [bound for part in flat if (bound := getattr(part, name, None)) is not None]
