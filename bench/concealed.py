"""Mistakes behind mistakes: values that do not go together, in a mapping that also holds a wrong one.

pydantic asks whether values go together only once each is right by itself, so that whoever mends one mistake would meet
the next. Here the wrong values are taken out, and the question is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from bench.datapaths import has, keys_of, types_at
from bench.findings import Finding, named_values, typed
from bench.source import DataPath

PARTS_ALONE = {"parts_alone": True}
"""Context of validation that keeps a model from asking its own rules."""
_STAND_INS = (None, 2, 0.7)
"""What stands in the place of a wrong value: nothing, so that its default does, or a number that it may be."""


def concealed(
    model: type[BaseModel], data: Any, found: Sequence[Finding], *, parts_alone: bool = False
) -> list[Finding]:
    """Values that do not go together, in a mapping that pydantic gave up because another of its values is wrong.

    Only what is so whatever stands in the place of the wrong values, and what no sentence says of them.

    Args:
        found: what `validate` found.
        parts_alone: leave out the rules of the model itself, which looks at `PARTS_ALONE`.
    """
    wrong = {path for finding in found if not finding.is_cross_field and (path := _in_mapping(finding.path))}
    doubtful = wrong.union(*(_perhaps_meant(model, finding, data) for finding in found if finding.at_key))
    seen: list[Finding] = []
    if wrong:
        context = PARTS_ALONE if parts_alone else None
        first, *others = (_with_stand_in(model, data, wrong, value, context) for value in _STAND_INS)
        seen = [finding for finding in first if all(finding in other for other in others)]
        seen = _told(seen, doubtful)
    parts = [finding for finding in (*found, *seen) if finding.is_cross_field and finding.path]
    if parts and not parts_alone:  # parts that break rules of their own keep pydantic from asking those of the whole
        doubtful = doubtful.union(*map(named_values, parts))
        whole = typed(model, _replaced(data, dict.fromkeys(wrong)), {"rules_of": model})[1]
        seen += _told([finding for finding in whole if not finding.path], doubtful)
    return [finding for finding in dict.fromkeys(seen) if finding not in found]


def _told(findings: Sequence[Finding], doubtful: set[DataPath]) -> list[Finding]:
    """Those of values that do not go together and none of which is doubtful."""
    return [each for each in findings if each.is_cross_field and doubtful.isdisjoint(named_values(each))]


def _in_mapping(path: DataPath) -> DataPath:
    """Up to the last key: an item of a list is taken out with its list."""
    return path if not path or isinstance(path[-1], str) else _in_mapping(path[:-1])


def _with_stand_in(model: type[BaseModel], data: Any, wrong: set[DataPath], value: Any, context: Any) -> list[Finding]:
    """What is found once a value stands in each wrong place that takes it, and nothing in the others."""
    refused = wrong
    if value is not None:
        tried = typed(model, _replaced(data, dict.fromkeys(wrong, value)), context)[1]
        refused = {_in_mapping(finding.path) for finding in tried}
    return typed(model, _replaced(data, {path: None if path in refused else value for path in wrong}), context)[1]


def _replaced(data: Any, values: Mapping[DataPath, Any]) -> Any:
    """A copy with other values at some paths; without those that are None."""
    here = {path[0]: value for path, value in values.items() if len(path) == 1}
    inner: dict[str | int, dict[DataPath, Any]] = {}
    for path, value in values.items():
        if len(path) > 1 and path[0] not in here:
            inner.setdefault(path[0], {})[path[1:]] = value
    if isinstance(data, Mapping):
        kept = {key: _replaced(value, inner[key]) if key in inner else value for key, value in data.items()}
        return {key: value for key, value in {**kept, **here}.items() if value is not None or key not in here}
    if isinstance(data, list | tuple):
        return [_replaced(value, inner[index]) if index in inner else value for index, value in enumerate(data)]
    return data


def _perhaps_meant(model: type[BaseModel], finding: Finding, data: Any) -> set[DataPath]:
    """Keys that an unknown one may have meant: those that are not given beside it."""
    home = finding.path[:-1]
    return {(*home, key) for key in keys_of(types_at(model, home, data)) if not has(data, (*home, key))}
